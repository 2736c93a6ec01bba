"""What trainers share that learn from completions they draw themselves: collect, then train on what was collected.

Collecting happens in `get_batch_samples`, which transformers calls once an optimizer step: rollouts, rewards and scores
are made there, and micro-batches handed out. Steps, schedulers, checkpoints and resume then see ordinary training. All
that is drawn comes from (seed, step, number in the batch), so a resumed run draws what the whole one did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback

from tuneline.data.images import tokenizer_of
from tuneline.environments import Interaction
from tuneline.errors import ConfigError, DataError
from tuneline.logprobs import token_logprobs
from tuneline.metrics import Recorded
from tuneline.models.layouts import base_model
from tuneline.models.loading import add_adapter, disable_dropout, given_model
from tuneline.rewards.calling import Scores
from tuneline.rollout.protocol import RolloutEngine, rollout_seed
from tuneline.rollout.stopping import stop_token_ids
from tuneline.trainers.base import (
    BaseTrainer,
    Rows,
    check_prompt_learning,
    default_args,
    ready_tokenizer,
    reject_prompt_learning,
)
from tuneline.trainers.collecting import Collector
from tuneline.trainers.completions_log import CompletionsLog, RolloutTable, rollout_table
from tuneline.trainers.drawing import Drawn, RolloutFunction
from tuneline.trainers.experience import Experience, ScoredRollout, make_experience
from tuneline.trainers.online_config import OnlineConfig
from tuneline.trainers.online_inputs import check_images, check_rows, default_engine, reward_functions
from tuneline.trainers.online_state import OnlineState, StepTime
from tuneline.trainers.prompts import prompt_loader
from tuneline.trainers.reference import Reference, SyncReference, reference_of
from tuneline.trees import PromptTrees

RolloutListener = Callable[[int, RolloutTable], None]


class OnlineTrainer(BaseTrainer):
    """Base of the online trainers. A subclass writes `assign_credit`, `loss` and `num_items`.

    Args:
        model: a causal language model, its name or folder, or a PEFT model.
        reward_funcs: one or several of: a function with TRL's signature, sync or async; the name of a built-in; a
            sequence classifier, its name or folder; a `RewardAdapter` on the policy's own base; a URL.
        train_dataset, eval_dataset: rows with a `prompt`, text or messages; their other columns go to the rewards.
        reward_processing_classes: tokenizers of reward models, one a function.
        make_interaction: makes tools and environments of the tokenizer and the tokens that end a turn.
        rollout_func: makes the rollouts instead of the engine.
        rollout_engine: draws completions, from log-probabilities of its own that GRPO corrects for; None for the model
            itself, or vLLM where the configuration says so.
        ref_model: the reference policy; None for the policy as it comes.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    args: OnlineConfig
    config_class: type = OnlineConfig
    method = "Online"
    learns_from_rewards: ClassVar[bool] = True
    takes_images: ClassVar[bool] = False
    takes_learned_prompts: ClassVar[bool] = False  # adapters that put virtual tokens before every sequence
    scores_as_drawn: ClassVar[bool] = True  # by the sampler's temperature and support; else by the plain policy

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        rollout_engine: RolloutEngine | None = None,
        rollout_func: RolloutFunction | None = None,
        make_interaction: Callable[[Any, Sequence[int]], Interaction] | None = None,
        ref_model: PreTrainedModel | None = None,
    ):
        args = default_args(self.config_class, model, self.method) if args is None else args
        model = given_model(model, args, quantization_config)
        tokenizer = ready_tokenizer(
            processing_class, model, args, args.eos_token, args.chat_template_path, takes_images=self.takes_images
        )
        continues_adapter = isinstance(model, PeftModel) and peft_config is None
        policy: Any = add_adapter(model, peft_config)
        if self.takes_learned_prompts:
            check_prompt_learning(policy, args)
        else:
            reject_prompt_learning(policy, f"{self.method} asks about tokens in rows of trees alone")
        if args.disable_dropout:
            disable_dropout(policy)
        train_dataset = self.ready_rows("train_dataset", train_dataset, tokenizer)
        eval_dataset = self.ready_rows("eval_dataset", eval_dataset, tokenizer)
        self.sampling = args.sampling(stop_token_ids(base_model(policy), tokenizer))
        check_images(tokenizer, (train_dataset, eval_dataset), args.use_vllm, make_interaction is not None)
        interaction = None
        if make_interaction is not None:
            interaction = make_interaction(tokenizer_of(tokenizer), self.sampling.stop_token_ids)
        is_rewarded, has_reference = self.learns_from_rewards, self.has_reference(args)
        self.rewards = reward_functions(reward_funcs, reward_processing_classes, interaction, args, is_rewarded)
        if ref_model is not None and ref_model is model:
            raise ConfigError("model and ref_model are one object, which would train; leave ref_model out for a copy.")
        if has_reference and ref_model is None:
            ref_model = reference_of(policy, continues_adapter)
        self.rewards.attach(policy)
        if args.sync_ref_model and ref_model is None:
            raise ConfigError(
                "sync_ref_model=True moves a reference model of its own, and there is none: it needs beta above 0 and "
                "a model without adapters."
            )
        self.queue: deque[Experience] = deque()
        self.listeners: list[RolloutListener] = []
        self._num_evaluated = 0
        self._recorded: set[str] = set()
        self.step_num_items = self.step_num_targets = torch.ones(())
        super().__init__(
            model=self.trained_module(policy, args),
            args=args,
            data_collator=list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.reference = Reference(ref_model, self) if has_reference else None
        if args.sync_ref_model and ref_model is not None:
            self.add_callback(
                SyncReference(ref_model, alpha=args.ref_model_mixup_alpha, every=args.ref_model_sync_steps)
            )
        self.rewards.move_to(self.args.device)
        self.add_callback(StepTime(self))
        self.add_callback(OnlineState(self))
        engine = rollout_engine or default_engine(self)
        self.collector = Collector(self, engine, self.rewards, interaction, rollout_func)
        if args.log_completions:
            self.add_rollout_listener(CompletionsLog.of(args))

    # What a method writes

    def num_items(self, experience: Any) -> Any:
        """() of a micro-batch: what its losses are a mean over."""
        raise NotImplementedError

    def loss(self, model: nn.Module, experience: Any) -> Tensor:
        """(targets,): what the loss of the step is the sum of, over its number of items."""
        raise NotImplementedError

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        """(rollouts,): advantages from `rewards` (rollouts, functions), all of them over all processes; `drawn` and
        `scored` are this process's."""
        raise NotImplementedError

    def trained_module(self, policy: Any, args: Any) -> nn.Module:
        """What is trained: the policy, or a module that holds it."""
        return policy

    def has_reference(self, args: Any) -> bool:
        """Whether the method holds the policy against a reference; asked before the trainer is made."""
        return bool(args.beta)

    def draw(self, rows: list[dict[str, Any]], seeds: list[int]) -> Drawn:
        """A rollout a row, by the weights of this step."""
        return self.collector.draw(rows, seeds)

    def ready_rows(self, name: str, rows: Any, tokenizer: Any) -> Any:
        """Rows with a `prompt` each; raises DataError where they have none."""
        check_rows(name, rows)
        return rows

    def ask_policy(self, policy: nn.Module, trees: PromptTrees, support: Tensor | None) -> dict[str, Tensor]:
        """Each (targets,): what credit or losses need to know of the policy that drew, before it is trained."""
        if not self.needs_old_logprobs:
            return {}
        temperature = self.sampling.temperature
        found = token_logprobs(policy, trees, temperature=temperature, with_entropy=True, support=support)
        return {"old_logprobs": found.logprobs, "old_entropies": found.entropies}

    @property
    def scoring_batch_size(self) -> int:
        """Completions that a model is asked about at once."""
        return self.args.per_device_train_batch_size

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy that drew is asked again before training: not where it is the one that trains."""
        return (
            self.args.gradient_accumulation_steps % (self.args.num_batches_a_generation * self.args.num_iterations) != 0
        )

    @property
    def reads_every_target(self) -> bool:
        """Whether the loss reads completions of advantage 0 too."""
        return self.args.beta != 0

    def algorithm_state(self) -> dict[str, Any]:
        """Numbers that the algorithm adapts, for a checkpoint."""
        return {}

    def load_algorithm_state(self, numbers: dict[str, Any]) -> None:
        """Take back what `algorithm_state` gave."""

    def save_algorithm_weights(self, folder: Path) -> None:
        """Write weights that belong to the algorithm alone, for a checkpoint; called on every process."""

    def load_algorithm_weights(self, folder: Path) -> None:
        """Take back what `save_algorithm_weights` wrote."""

    # Metrics

    def record(self, values: Mapping[str, Recorded]) -> None:
        self._recorded |= values.keys()
        device = self.args.device  # where metrics are added; rollouts are measured on the CPU
        super().record(
            {n: v.to(device) if isinstance(v, Tensor) else (v[0].to(device), v[1]) for n, v in values.items()}
        )

    def agree_on_metrics(self) -> None:
        """Make the names known that another process has recorded, such as what its reward functions logged; every
        process must call it."""
        if self.accelerator.num_processes > 1:
            names = sorted(set(gather_object(sorted(self._recorded))))
            self.record({name: torch.empty(0) for name in names})
        self._recorded.clear()

    # What users may call

    def add_rollout_listener(self, listener: RolloutListener) -> None:
        """Have the main process call `listener(step, table)` with all rollouts of each generation to train on."""
        self.listeners.append(listener)

    # The loop

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        if 0 < self.state.max_steps <= self.state.global_step:
            return [], torch.ones((), device=device)
        batches: list[Experience] = []
        for number, (_, rows) in enumerate(zip(range(num_batches), epoch_iterator, strict=False)):
            if not self.queue:
                scored = self.collect(rows, self.args.num_generations, (number,))
                self.queue.extend(self.micro_batches(scored, (number,)))
            batches.append(self.queue.popleft().to(device))
        return batches, self.count_batches(batches, device)

    def micro_batches(self, scored: list[ScoredRollout], key: tuple[Any, ...]) -> list[Experience]:
        """A generation as the micro-batches of all passes over it; `key` as in `collect`."""
        size = max(1, -(-len(scored) // self.args.num_batches_a_generation))
        one_pass = [make_experience(scored[start : start + size]) for start in range(0, len(scored), size)]
        return one_pass * self.args.num_iterations

    def count_batches(self, batches: list[Any], device: torch.device) -> Tensor:
        """The items of an optimizer step, over all processes."""
        counts = torch.zeros(3, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        for one in batches:
            items = torch.as_tensor(self.num_items(one), device=device)
            counts += torch.stack([items, one.num_targets, one.num_tokens])
        items, targets, tokens = self.accelerator.reduce(counts, "sum")
        self.step_num_items, self.step_num_targets = items.clamp(min=1), targets.clamp(min=1)
        self._tokens_of_step = tokens.long()
        self.count_step(batches)
        return self.step_num_items

    @torch.no_grad()
    def collect(self, rows: list[dict[str, Any]], group_size: int, key: tuple[Any, ...]) -> list[ScoredRollout]:
        """Rollouts of these rows, rewarded and scored.

        Args:
            rows: those of this process, the rows of a group behind one another.
            key: with the seed and the step it names all that is drawn.
        """
        counts = self.collector.counts(len(rows))
        first = sum(counts[: self.accelerator.process_index])
        group_ids = torch.arange(sum(counts)) // group_size
        seeds = [rollout_seed(self.args.seed, self.state.global_step, *key, first + i) for i in range(len(rows))]
        with self.collector.timed("rollout"):
            drawn = self.draw(rows, seeds)
        pending = self.collector.start_rewards(drawn)
        scored = [ScoredRollout(rollout) for rollout in drawn.rollouts]
        if not self._may_replace:
            with self.collector.timed("scoring"):
                self.collector.score(scored)
        with self.collector.timed("rewards"):
            scores = pending.result()
        rewards = self.collector.of_all(scores.values)
        if self._may_replace:
            rewards = self._replace(drawn, scores, rewards, group_ids, first, key)
            scored = [ScoredRollout(rollout) for rollout in drawn.rollouts]
            with self.collector.timed("scoring"):
                self.collector.score(scored)
        for one in scored:
            one.counts_targets = one.rollout.is_finished or not self.args.mask_truncated_completions
        advantages = self.assign_credit(rewards, group_ids, drawn, scored)
        self.collector.record_rollouts(drawn, scores, rewards, group_ids)
        if self.mode == "train":
            self.agree_on_metrics()
        for one, advantage in zip(scored, advantages[first : first + len(rows)].tolist(), strict=True):
            one.advantage = advantage
            is_idle = advantage == 0 and self.args.skip_zero_advantages and not self.reads_every_target
            one.learns = one.counts_targets and not is_idle
        if self.listeners and self.mode == "train":
            table = rollout_table(self, drawn, scores, rewards, advantages)
            if self.is_world_process_zero():
                for listener in self.listeners:
                    listener(self.state.global_step, table)
        return scored

    @property
    def _may_replace(self) -> bool:
        return False

    def _replace(
        self, drawn: Drawn, scores: Scores, rewards: Tensor, group_ids: Tensor, first: int, key: tuple[Any, ...]
    ) -> Tensor:
        """Dynamic sampling, where a method has it; `first` is the place of this process's first rollout."""
        raise NotImplementedError

    def floating_point_ops(self, inputs: Experience) -> int:
        return super().floating_point_ops(inputs.trees)

    # Evaluation

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._num_evaluated = 0
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows = inputs[: self._num_real_trees(len(inputs))]
        self._num_evaluated += 1
        self.collector.note_columns(inputs)
        group_size = self.args.completions_a_prompt_in_evaluation
        scored = self.collect(rows, group_size, ("evaluation", self._num_evaluated))
        loss = torch.zeros((), device=self.args.device)
        if scored:
            experience = make_experience(scored).to(self.args.device)
            num_items = torch.as_tensor(self.num_items(experience))  # 0 where nothing can be learned
            self.step_num_items, self.step_num_targets = num_items.clamp(min=1), experience.num_targets.clamp(min=1)
            self.count_step([experience])
            with torch.no_grad(), self.compute_loss_context_manager():
                losses = self.loss(model, experience)
            self.record({"loss": (losses.sum(), num_items)})
            loss = losses.sum() / num_items.clamp(min=1)
        self.agree_on_metrics()
        return loss, None, None

    # Data

    def get_train_dataloader(self) -> DataLoader:
        if self.train_dataset is None:
            raise DataError("there is no train_dataset to learn from; pass one with a column 'prompt'.")
        a = self.args
        per_process = a.per_device_train_batch_size * a.num_batches_a_generation
        num_prompts = per_process * a.world_size // a.num_generations
        repeats = a.num_batches_a_generation * a.num_iterations
        return prompt_loader(
            self, self.train_dataset, per_process, a.num_generations, num_prompts, repeats, a.shuffle_dataset
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self.eval_dataset[rows] if isinstance(rows, str) else rows
        a = self.args
        group_size, total = a.completions_a_prompt_in_evaluation, a.per_device_eval_batch_size * a.world_size
        if total % group_size:
            raise ConfigError(
                f"the evaluation batch of {total} completions (per_device_eval_batch_size x processes) is no multiple "
                f"of the {group_size} completions a prompt (num_generations_eval); change one of them."
            )
        if isinstance(rows, IterableDataset):
            return prompt_loader(self, rows, a.per_device_eval_batch_size, group_size, 1, 1, False)
        # Each row as often as it is asked, so that the length tells how many of the last batch are there to fill it up.
        rows = rows.select([i for i in range(len(rows)) for _ in range(group_size)])
        return prompt_loader(self, rows, a.per_device_eval_batch_size, 1, 1, 1, False)
