"""Distillation from a teacher that runs elsewhere, behind a vLLM server (names and meaning of TRL's)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback

from tuneline.models.layouts import policy_of
from tuneline.rollout.protocol import RolloutEngine
from tuneline.trainers.base import Rows
from tuneline.trainers.distillation import DistillationTrainer
from tuneline.trainers.server_distillation_config import ServerDistillationConfig
from tuneline.trainers.server_teacher import ServerTeacher


class ServerDistillationTrainer(DistillationTrainer):
    """As `DistillationTrainer`; a server says of each target how likely a few tokens are, and these are compared.

    With `beta=0` they are the teacher's `loss_top_k` likeliest, with `beta=1` the one that was written, and between
    them that one and the teacher's likeliest. The rest of the vocabulary counts as one token (`loss_add_tail`).

    Raises:
        RolloutError: the server is not reached.
    """

    args: ServerDistillationConfig
    config_class = ServerDistillationConfig
    method = "ServerDistillation"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: ServerDistillationConfig | None = None,
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
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_engine=rollout_engine,
        )

    def take_teacher(self, model: str | PreTrainedModel | None, **kwargs: Any) -> None:
        """The one behind `teacher_model_server_url`; nothing is loaded."""
        a = self.args
        self.teacher = ServerTeacher(
            str(a.teacher_model_server_url),
            policy_of(self.model).config.get_text_config().vocab_size,
            beta=a.beta,
            top_k=a.loss_top_k,
            add_tail=a.loss_add_tail,
            timeout=a.vllm_request_timeout,
            wait=a.vllm_server_timeout,
        )
