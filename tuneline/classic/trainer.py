"""PPO step by step: the caller draws responses, scores them, and hands both over (Ziegler et al. 2019,
arXiv:1909.08593).

One implementation with `PPOTrainer`: prompt trees, the value function as a head, generalised advantage estimation,
whitening and both losses are the library's own. What differs from TRL 0.11 stands in `docs/from-trl.md`: dropout is
off, so that the first ratio is 1; a mean is over all targets of an update and of all processes, whatever the
mini-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, set_seed

from tuneline.classic.batch import StepBatch, checked_batch
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.generating import respond
from tuneline.classic.learning import Learning
from tuneline.classic.reporting import Tracking, check_tracker, make_dataloader
from tuneline.classic.setup import make_optimizer, make_reference, with_value_head
from tuneline.classic.state import load_folder, restore, save_folder, snapshot
from tuneline.classic.statistics import Credit, Updates, lengths, statistics
from tuneline.controllers import AdaptiveKLController, FixedKLController
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger
from tuneline.models.loading import disable_dropout
from tuneline.running_moments import RunningMoments

logger = get_logger(__name__)


class StepPPOTrainer:
    """The step interface of TRL 0.11.

    Args:
        config: its options.
        model: a language model with a value head; a plain or PEFT model gets one, which is 0 everywhere at first. Its
            dropout is set to zero.
        ref_model: the reference policy; None for a copy of the model as it comes, or for its base where it has an
            adapter.
        tokenizer: the model's.
        dataset: gives `dataloader` its rows.
        optimizer: on the model's parameters; None for Adam on all that learn.
        data_collator: makes batches of rows of the data set.
        num_shared_layers: first layers that policy and reference share, frozen; with `ref_model=None`.
        lr_scheduler: stepped once a call of `step`.
        training_data_collator: accepted; there is no padding to collate.

    Raises:
        ConfigError, ModelError, DataError: before any work.
    """

    def __init__(
        self,
        config: ClassicPPOConfig | None = None,
        model: Any = None,
        ref_model: Any = None,
        tokenizer: Any = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
        training_data_collator: Any = None,
    ):
        if not isinstance(config, ClassicPPOConfig):
            raise ConfigError(f"config is a {type(config).__name__}; pass PPOConfig(batch_size=..., ppo_epochs=...).")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(f"tokenizer is a {type(tokenizer).__name__}; pass the model's tokenizer.")
        check_tracker(config)
        set_seed(config.seed)
        self.config, self.tokenizer, self.dataset, self.data_collator = config, tokenizer, dataset, data_collator
        self.accelerator = Accelerator(
            log_with=config.log_with,
            project_config=ProjectConfiguration(**config.project_kwargs),
            **config.accelerator_kwargs,
        )
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ConfigError(
                "the step interface runs on one process or under DDP; for sharded models use PPOTrainer(args=...)."
            )
        self.model = with_value_head(model)
        self.is_encoder_decoder, self.is_peft_model = self.model.is_encoder_decoder, self.model.is_peft_model
        disable_dropout(self.model)
        self.ref_model = make_reference(self.model, ref_model, num_shared_layers)
        self.lr_scheduler = lr_scheduler
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
            if self.is_peft_model:
                self.model.enable_input_require_grads()
        self.dataloader = None if dataset is None else self.prepare_dataloader(dataset, data_collator)
        self.learning = Learning(
            config,
            self.accelerator,
            self.model,
            self.ref_model,
            make_optimizer(optimizer, self.model, config.learning_rate),
        )
        self.num_generated = 0
        self._told_small = False
        self._fill_in(config)
        self.tracking = Tracking(self)

    @property
    def current_device(self) -> torch.device:
        return self.accelerator.device

    @property
    def optimizer(self) -> Any:
        return self.learning.optimizer

    @property
    def kl_ctl(self) -> AdaptiveKLController | FixedKLController:
        return self.learning.kl_ctl

    @property
    def running(self) -> RunningMoments:
        """Mean and standard deviation of all scores, where `use_score_scaling` asks for them."""
        return self.learning.running

    # What users call

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses of the policy.

        Args:
            query_tensor: (length,), or a list of such.
            length_sampler: gives the most new tokens, of each query.
            batch_size: responses written side by side; None for what suits the machine.
            return_prompt: whether a response begins with its query.
            generate_ref_response: whether the reference answers too.
            generation_kwargs: those of transformers' `generate`, over the model's own.

        Returns:
            A list of tensors (length,) for a list, (1, length) for a tensor; with `generate_ref_response` a pair.

        Raises:
            ConfigError, DataError: a keyword that is unknown, a query that is none.
        """
        is_list = isinstance(query_tensor, list)
        tensors: list[Tensor] = list(query_tensor) if is_list else [query_tensor]  # type: ignore[list-item]
        for i, one in enumerate(tensors):
            if not isinstance(one, Tensor) or one.ndim != 1:
                what = f"of shape {tuple(one.shape)}" if isinstance(one, Tensor) else f"a {type(one).__name__}"
                raise DataError(f"query_tensor[{i}] is {what}; generate takes a tensor (length,), or a list of such.")
        queries = [tensor.tolist() for tensor in tensors]

        def answers(policy: Any) -> Any:
            seeds = [self.learning.seed("generate", self.num_generated, i) for i in range(len(queries))]
            with self.accelerator.autocast():
                written = respond(
                    policy,
                    self.tokenizer,
                    queries,
                    seeds,
                    batch_size=batch_size,
                    length_sampler=length_sampler,
                    options=generation_kwargs,
                )
            with_prompt = return_prompt and not self.is_encoder_decoder
            rows = [query * with_prompt + ids for query, ids in zip(queries, written, strict=True)]
            found = [torch.tensor(ids, device=self.current_device) for ids in rows]
            return found if is_list else found[0][None]

        responses = answers(self.model.pretrained_model)
        if generate_ref_response:
            with self.learning.as_reference() as reference:
                ref_responses = answers(reference)
        self.num_generated += 1
        return (responses, ref_responses) if generate_ref_response else responses

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor] | Tensor,
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Learn from a batch: `ppo_epochs` passes.

        Args:
            queries, responses: tensors (length,) of token ids; for an encoder-decoder a response begins with the token
                that its decoder starts with, and is given it where it does not.
            scores: one a query.
            response_masks: tensors (length,), 0 where an environment wrote: such tokens are read, not learned.

        Returns:
            Statistics, see `tuneline.classic.statistics`; numbers, and arrays where a name stands for many.

        Raises:
            DataError: before anything is computed, where lists do not fit each other or the configuration.
        """
        clock = _Clock()
        batch = self._checked(queries, responses, scores, response_masks)
        with clock.timed("total"):
            with clock.timed("forward_pass"):
                before = self.learning.read(batch)
            with clock.timed("compute_rewards"):
                rewards, scaled = self.learning.rewards(batch, before)
            with clock.timed("compute_advantages"):
                credit = self.learning.credit(batch, before, rewards, scaled)
            if self.config.optimize_device_cache and torch.cuda.is_available():
                torch.cuda.empty_cache()
            with clock.timed("optimize_step"):
                updates = self.learning.update(batch, credit)
            with clock.timed("calc_stats"):
                stats = self._statistics(batch, credit, updates)
        self.kl_ctl.update(stats["objective/kl"], len(batch) * self.accelerator.num_processes)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.learning.num_steps += 1
        return stats | {f"time/ppo/{name}": seconds for name, seconds in clock.seconds.items()}

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: Mapping[str, Any],
        rewards: Sequence[Any] | Tensor,
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Send the statistics of a step, and its rewards, to the tracker; one line of them goes to the log.

        Args:
            batch: holds the columns to log, each a list with one text a reward.
        """
        self.tracking.log(stats, batch, rewards, columns_to_log)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write model, value head and tokenizer; `from_pretrained` reads them."""
        if self.accelerator.is_main_process:
            self.model.save_pretrained(save_directory, **kwargs)
            self.tokenizer.save_pretrained(save_directory)
        self.accelerator.wait_for_everyone()

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Upload what `save_pretrained` writes."""
        if self.accelerator.is_main_process:
            self.model.push_to_hub(repo_id, **kwargs)
            self.tokenizer.push_to_hub(repo_id, **kwargs)

    def prepare_dataloader(self, dataset: Any, data_collator: Callable[[list[Any]], Any] | None = None) -> DataLoader:
        """Batches of `batch_size` rows, shuffled; a last one that is short is left out."""
        return make_dataloader(self, dataset, data_collator)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on to the bit, beside what it was made with: parameters that learn, optimizer,
        schedule, KL controller, running moments, counts, and random generators of this process."""
        return snapshot(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave, into a trainer made alike."""
        restore(self, state)

    def save_state(self, folder: str | Path) -> None:
        """Write `state_dict`; every process must call it."""
        save_folder(self, Path(folder))

    def load_state(self, folder: str | Path) -> None:
        """Take what `save_state` wrote; every process must call it."""
        load_folder(self, Path(folder))

    # Setting up

    def _fill_in(self, config: ClassicPPOConfig) -> None:
        """What the configuration has for the trainer to say."""
        config.is_encoder_decoder, config.is_peft_model = self.is_encoder_decoder, self.is_peft_model
        config.world_size = self.accelerator.num_processes
        config.global_batch_size = config.batch_size * config.world_size
        config.global_backward_batch_size = (config.backward_batch_size or 1) * config.world_size

    # One step

    def _checked(self, queries: Any, responses: Any, scores: Any, response_masks: Any) -> StepBatch:
        if self.is_encoder_decoder and isinstance(responses, list | tuple):
            responses, response_masks = self._with_start(responses, response_masks)
        batch = checked_batch(
            queries, responses, scores, response_masks, self.config.batch_size, int(self.is_encoder_decoder)
        )
        if len(batch) < self.config.batch_size and not self._told_small:
            self._told_small = True
            logger.warning(
                "step got %d queries; batch_size=%d. It learns from these.", len(batch), self.config.batch_size
            )
        if not all(batch.target_counts):
            empty = batch.target_counts.count(0)
            logger.warning("%d of %d responses are masked as a whole; their scores are left out", empty, len(batch))
        if self.accelerator.num_processes > 1:
            sizes = self.accelerator.gather(torch.tensor([len(batch)], device=self.current_device)).tolist()
            if len(set(sizes)) > 1:
                raise DataError(f"step got {sizes} queries on its processes; give each as many as the others.")
        return batch

    def _with_start(self, responses: Any, masks: Any) -> tuple[Any, Any]:
        """Each response with its decoder's start token, and its mask with a 0 there."""
        start = self.model.config.decoder_start_token_id
        begins = [isinstance(r, Tensor) and r.ndim == 1 and len(r) > 0 and int(r[0]) == start for r in responses]
        masked = masks if isinstance(masks, list | tuple) and len(masks) == len(responses) else None
        if masked is not None:
            masks = [
                m if begun or not isinstance(m, Tensor) else torch.cat([m.new_zeros(1), m])
                for m, begun in zip(masked, begins, strict=True)
            ]
        responses = [
            r if begun or not isinstance(r, Tensor) or r.ndim != 1 else torch.cat([r.new_tensor([start]), r])
            for r, begun in zip(responses, begins, strict=True)
        ]
        return responses, masks

    def _statistics(self, batch: StepBatch, credit: Credit, updates: Updates) -> dict[str, Any]:
        stats = statistics(credit, updates, self.kl_ctl.value, self.config.vf_coef, self.learning.sum)
        if stats["objective/kl"] < -1:
            logger.warning(
                "the mean KL divergence is %.2f, and it cannot be negative: responses were not drawn from what is "
                "trained. Look for top_k (50 where do_sample is on and none is given; use 0), top_p, min_length, "
                "repetition_penalty or num_beams in generation, for another tokenizer, or for weights that have moved "
                "since the responses were drawn.",
                stats["objective/kl"],
            )
        stats |= lengths("queries", [len(query) for query in batch.queries], self.learning.sum)
        stats |= lengths("responses", [len(response) for response in batch.responses], self.learning.sum)
        return stats | {"ppo/learning_rate": self.optimizer.param_groups[0]["lr"]}


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
