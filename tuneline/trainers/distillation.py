"""On-policy distillation: the student writes, and learns the teacher's distribution at each token it wrote (Agarwal et
al. 2023, arXiv:2306.13649; with the reverse KL, Gu et al. 2023, arXiv:2306.08543, its token-level part)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from tuneline.divergence import divergences
from tuneline.environments import Interaction
from tuneline.models.layouts import policy_of
from tuneline.rollout.protocol import RolloutEngine
from tuneline.trainers.base import Rows, default_args
from tuneline.trainers.distillation_config import DistillationConfig, TeacherConfig
from tuneline.trainers.drawing import Drawn
from tuneline.trainers.experience import Experience, ScoredRollout
from tuneline.trainers.online import OnlineTrainer
from tuneline.trainers.server_teacher import ServerTeacher
from tuneline.trainers.teacher import Teacher


class TaughtTrainer(OnlineTrainer):
    """Base of the methods that learn a teacher's next-token distributions. The items are tokens.

    A subclass sets `teacher` once it is made.
    """

    args: TeacherConfig
    learns_from_rewards = False
    teacher: Teacher | ServerTeacher

    @property
    def divergence_temperature(self) -> float:
        """Divides the logits of student and teacher in the loss."""
        return self.sampling.temperature

    def take_teacher(self, model: str | PreTrainedModel | None, **kwargs: Any) -> None:
        """See `Teacher`; `kwargs` are for loading one given by name."""
        if model is None:
            model = self.args.teacher_model_name_or_path
        kwargs = kwargs if isinstance(model, str) else {}
        init_kwargs = self.args.teacher_model_init_kwargs
        self.teacher = Teacher(model, policy_of(self.model), self.args.device, init_kwargs, **kwargs)

    @property
    def local_teacher(self) -> Teacher:
        """The teacher that lies in this process."""
        assert isinstance(self.teacher, Teacher)
        return self.teacher

    def has_reference(self, args: Any) -> bool:
        return False

    @property
    def needs_old_logprobs(self) -> bool:
        return False

    @property
    def reads_every_target(self) -> bool:
        return True

    def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Drawn, scored: list[ScoredRollout]) -> Tensor:
        """Nothing is better or worse: each token has a teacher's distribution to learn."""
        return torch.zeros(len(group_ids))

    def num_items(self, experience: Experience) -> Tensor:
        return experience.num_targets

    def loss(self, model: nn.Module, experience: Experience) -> Tensor:
        trees = experience.trees
        weights = experience.weights[trees.sequence_ids]
        found = divergences(
            model,
            trees,
            self.teacher.answer(trees),
            beta=self.args.beta,
            temperature=self.divergence_temperature,
            weights=weights,
        )
        self.record({"entropy": ((found.entropies * weights).sum(), weights.sum())})
        return found.losses


class DistillationTrainer(TaughtTrainer):
    """Learning from a teacher on the student's own completions.

    Args:
        teacher_model: a causal language model with the student's vocabulary, its name or folder; None for
            `teacher_model_name_or_path`. Each process keeps a whole copy.
        tools: plain or async functions with type hints and a docstring, that the student may call; their answers are
            not learned.

    For the other arguments and what is raised see `OnlineTrainer`.
    """

    args: DistillationConfig
    config_class = DistillationConfig
    method = "Distillation"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teacher_model: str | PreTrainedModel | None = None,
        args: DistillationConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        tools: Iterable[Callable[..., Any]] | None = None,
        rollout_engine: RolloutEngine | None = None,
    ):
        config: DistillationConfig = default_args(self.config_class, model, self.method) if args is None else args

        def interaction(tokenizer: Any, stop_token_ids: Sequence[int]) -> Interaction:
            return Interaction(
                tokenizer,
                stop_token_ids,
                tools=tools,
                max_tool_calling_iterations=config.max_tool_calling_iterations,
                chat_template_kwargs=config.template_kwargs,
            )

        super().__init__(
            model=model,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            rollout_engine=rollout_engine,
            make_interaction=interaction if tools else None,
        )
        revision = {} if config.teacher_model_revision is None else {"revision": config.teacher_model_revision}
        self.take_teacher(teacher_model, trust_remote_code=config.trust_remote_code, **revision)
