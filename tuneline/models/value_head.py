"""Language models with a value head: the classes that code written against TRL 0.11 loads its policies with.

The head reads the last hidden state at every token. Folders are those of TRL: the model's own weights under their own
names, so that any class of transformers loads them, and the head's beside them as `v_head.summary.*`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub import HfApi
from peft import PeftConfig, PeftModel, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneline.errors import ConfigError, ModelError
from tuneline.models.adapters import active_adapter, load_adapter_beside
from tuneline.models.layouts import base_model
from tuneline.models.loading import add_adapter, load_causal_lm, load_seq2seq_lm
from tuneline.models.value_head_files import (
    HEAD_FILE,
    PREFIX,
    WHERE_FROM,
    find_file,
    head_weights,
    on_cpu,
    todays_names,
)

Strategy = Literal["normal"] | None


class ValueHead(nn.Module):
    """A value a token from its hidden state.

    Args:
        summary_dropout_prob: dropout of the hidden state, in training.
        v_head_initializer_range: standard deviation of new weights with the strategy "normal".
        v_head_init_strategy: "normal", with a bias of 0; None for torch's own.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        summary_dropout_prob: float = 0.1,
        v_head_initializer_range: float = 0.2,
        v_head_init_strategy: Strategy = None,
    ):
        super().__init__()
        if v_head_init_strategy not in (None, "normal", "random"):
            raise ConfigError(f"v_head_init_strategy={v_head_init_strategy!r} is unknown; use 'normal' or None.")
        self.dropout = nn.Dropout(summary_dropout_prob)
        self.summary = nn.Linear(hidden_size, 1)
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.summary.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (..., 1), in the head's precision."""
        return self.summary(self.dropout(hidden).to(self.summary.weight))


class _WithValueHead(nn.Module):
    """What the two classes share.

    Attributes:
        pretrained_model: the language model, or a PEFT model around it.
        v_head: the value head.
        is_peft_model: whether there is an adapter.
    """

    is_encoder_decoder = False
    pretrained_model: Any

    def __init__(
        self,
        pretrained_model: PreTrainedModel | PeftModel,
        *,
        summary_dropout_prob: float = 0.1,
        v_head_initializer_range: float = 0.2,
        v_head_init_strategy: Strategy = None,
    ):
        super().__init__()
        self._check(pretrained_model)
        self.pretrained_model = pretrained_model
        self.is_peft_model = isinstance(pretrained_model, PeftModel)
        head: Any = base_model(pretrained_model).get_output_embeddings()
        self.v_head = ValueHead(
            head.weight.shape[1],
            summary_dropout_prob=summary_dropout_prob,
            v_head_initializer_range=v_head_initializer_range,
            v_head_init_strategy=v_head_init_strategy,
        ).to(head.weight.device)
        self.rm_adapter_name: str | None = None
        self.score: nn.Linear | None = None

    @classmethod
    def _check(cls, model: Any) -> None:
        is_model = isinstance(model, PreTrainedModel | PeftModel)
        if not is_model or base_model(model).get_output_embeddings() is None:
            raise ModelError(
                f"{cls.__name__} goes on a language model of transformers, a PEFT model, a name or a folder, and got a "
                f"{type(model).__name__}; it needs a language-model head."
            )
        config = base_model(model).config
        if config.is_encoder_decoder != cls.is_encoder_decoder:
            kind, other = ("an encoder-decoder", "Seq2Seq") if config.is_encoder_decoder else ("a decoder", "Causal")
            raise ModelError(f"{type(base_model(model)).__name__} is {kind}; use AutoModelFor{other}LMWithValueHead.")

    @classmethod
    def _load(cls, name: str, **kwargs: Any) -> PreTrainedModel:
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | PreTrainedModel | PeftModel,
        *,
        peft_config: PeftConfig | None = None,
        reward_adapter: str | Path | None = None,
        reward_adapter_name: str = "reward_adapter",
        is_trainable: bool = False,
        summary_dropout_prob: float = 0.1,
        v_head_initializer_range: float = 0.2,
        v_head_init_strategy: Strategy = None,
        **kwargs: Any,
    ) -> Self:
        """A model and its value head, which is new where the folder has none.

        Args:
            pretrained_model_name_or_path: a name, a folder (of this class, of a plain model, or of an adapter), or a
                model, which is wrapped and not copied.
            peft_config: adds an adapter.
            reward_adapter: folder or name of an adapter that was trained as a reward model; see `compute_reward_score`.
            is_trainable: whether an adapter that the folder holds goes on learning.
            summary_dropout_prob, v_head_initializer_range, v_head_init_strategy: of the head, see `ValueHead`.
            kwargs: for the `from_pretrained` of transformers; weights are float32 where no `dtype` is given.

        Raises:
            ModelError: a model that cannot be loaded, or of the wrong kind.
            ConfigError: keywords that do not go together.
        """
        source = pretrained_model_name_or_path
        model: Any
        if isinstance(source, str | Path):
            name = str(source)
            model = cls._load_with_adapter(name, is_trainable, todays_names(kwargs))
            found = head_weights(name, {key: kwargs[key] for key in WHERE_FROM if key in kwargs})
        else:
            if kwargs:
                raise ConfigError(f"{', '.join(sorted(kwargs))}: for loading by name, and a model was given.")
            cls._check(source)
            model, found = source, {}
        wrapped = cls(
            add_adapter(model, peft_config),
            summary_dropout_prob=summary_dropout_prob,
            v_head_initializer_range=v_head_initializer_range,
            v_head_init_strategy=v_head_init_strategy,
        )
        if found:
            wrapped.v_head.load_state_dict(found)
        if reward_adapter is not None:
            wrapped.add_reward_adapter(str(reward_adapter), reward_adapter_name)
        return wrapped.eval()

    @classmethod
    def _load_with_adapter(cls, name: str, is_trainable: bool, kwargs: dict[str, Any]) -> Any:
        where = {key: kwargs[key] for key in WHERE_FROM if key in kwargs}
        if find_file(name, "adapter_config.json", where) is None:
            return cls._load(name, **kwargs)
        base = PeftConfig.from_pretrained(name, **where).base_model_name_or_path
        if not base:
            raise ModelError(f"{name!r} holds an adapter that names no base model; load the base and give it along.")
        own = {key: value for key, value in kwargs.items() if key not in WHERE_FROM}
        return PeftModel.from_pretrained(cls._load(base, **own), name, is_trainable=is_trainable, **where)

    # Calls

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Logits and values at every token.

        Args:
            input_ids: (sequences, length)
            attention_mask: (sequences, length), 1 where a token is.
            kwargs: for the language model: `labels`, `position_ids`, `decoder_input_ids`, ...

        Returns:
            logits (sequences, length, vocab) float32; the loss, None without labels; values (sequences, length); and
            with `return_past_key_values` the cache.
        """
        if past_key_values is not None:
            kwargs["past_key_values"] = past_key_values
        output = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask, **{**kwargs, "output_hidden_states": True}
        )
        states = output.decoder_hidden_states if self.is_encoder_decoder else output.hidden_states
        values = self.v_head(states[-1].to(self.v_head.summary.weight.device)).squeeze(-1)
        answers = (output.logits.float(), output.loss, values)
        return (*answers, output.past_key_values) if return_past_key_values else answers

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's own `generate`."""
        return self.pretrained_model.generate(*args, **kwargs)

    # The reward model that is an adapter

    @property
    def supports_rm_adapter(self) -> bool:
        return self.rm_adapter_name is not None

    def add_reward_adapter(self, name: str, adapter_name: str = "reward_adapter") -> None:
        """Load an adapter that was trained as a sequence classifier, with its head, for `compute_reward_score`."""
        if not isinstance(self.pretrained_model, PeftModel):
            raise ConfigError("reward_adapter needs a policy with an adapter too; give peft_config along.")
        config, tensors = PeftConfig.from_pretrained(name), load_peft_weights(name, device="cpu")
        head = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if ".score." in key}
        if "weight" not in head:
            raise ModelError(
                f"the adapter {name!r} has no `score` head; train it as a reward model (TaskType.SEQ_CLS)."
            )
        labels, hidden_size = head["weight"].shape
        self.score = nn.Linear(hidden_size, labels, bias="bias" in head).to(self.v_head.summary.weight.device)
        self.score.load_state_dict(head)
        self.score.requires_grad_(False)
        config.inference_mode, config.modules_to_save = True, None
        if isinstance(config.target_modules, list | set):
            config.target_modules = set(config.target_modules) - {"score"}
        own = {key: tensor for key, tensor in tensors.items() if ".score." not in key}
        load_adapter_beside(self.pretrained_model, adapter_name, config, own)
        self.rm_adapter_name = adapter_name

    @torch.no_grad()
    def compute_reward_score(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """(sequences, length, labels), float32: what the reward adapter says at every token; the last one counts.

        The policy's adapter is active again afterwards.

        Raises:
            ConfigError: no `reward_adapter` was given.
        """
        if self.score is None or self.rm_adapter_name is None:
            raise ConfigError("there is no reward adapter; give reward_adapter= to from_pretrained.")
        model = self.pretrained_model
        was_training = model.training
        model.eval()
        with active_adapter(model, self.rm_adapter_name):
            output = model(
                input_ids=input_ids, attention_mask=attention_mask, **{**kwargs, "output_hidden_states": True}
            )
        model.train(was_training)
        return self.score(output.hidden_states[-1].to(self.score.weight)).float()

    # What is saved

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The language model's weights under their own names, and `v_head.*`."""
        own = self.pretrained_model.state_dict(*args, **kwargs)
        head = self.v_head.state_dict(*args, **kwargs)
        own.update({PREFIX + name: value for name, value in head.items()})
        return own

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The reverse of `state_dict`."""
        head = {name.removeprefix(PREFIX): v for name, v in state_dict.items() if name.startswith(PREFIX)}
        own = {name: v for name, v in state_dict.items() if not name.startswith(PREFIX)}
        if head or strict:
            self.v_head.load_state_dict(head, strict=strict, assign=assign)
        return self.pretrained_model.load_state_dict(own, strict=strict, assign=assign)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write weights and configuration as safetensors; `kwargs` are those of the language model's own method."""
        with self._head_attached():
            self.pretrained_model.save_pretrained(save_directory, **kwargs)
        if self.is_peft_model:
            save_file(on_cpu(self.v_head), Path(save_directory) / HEAD_FILE)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload to the hub; `kwargs` are those of the language model's own method."""
        with self._head_attached():
            answer = self.pretrained_model.push_to_hub(repo_id, **kwargs)
        if self.is_peft_model:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / HEAD_FILE
                save_file(on_cpu(self.v_head), path)
                HfApi(token=kwargs.get("token")).upload_file(
                    path_or_fileobj=path, path_in_repo=HEAD_FILE, repo_id=repo_id, revision=kwargs.get("revision")
                )
        return answer

    @contextmanager
    def _head_attached(self) -> Iterator[None]:
        """The head a part of the model, so that what saves the one saves the other."""
        if self.is_peft_model:
            yield
            return
        self.pretrained_model.v_head = self.v_head
        try:
            yield
        finally:
            del self.pretrained_model.v_head

    # What code reads of a model

    @property
    def config(self) -> Any:
        return base_model(self.pretrained_model).config

    @property
    def generation_config(self) -> Any:
        return base_model(self.pretrained_model).generation_config

    @property
    def device(self) -> torch.device:
        return self.pretrained_model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pretrained_model.dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        return base_model(self.pretrained_model).is_gradient_checkpointing

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        self.pretrained_model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs=gradient_checkpointing_kwargs or {"use_reentrant": False}
        )

    def gradient_checkpointing_disable(self) -> None:
        self.pretrained_model.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        self.pretrained_model.enable_input_require_grads()

    def get_input_embeddings(self) -> nn.Module:
        return self.pretrained_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.pretrained_model.get_output_embeddings()


class AutoModelForCausalLMWithValueHead(_WithValueHead):
    """A causal language model with a value head."""

    @classmethod
    def _load(cls, name: str, **kwargs: Any) -> PreTrainedModel:
        return load_causal_lm(name, **kwargs)


class AutoModelForSeq2SeqLMWithValueHead(_WithValueHead):
    """An encoder-decoder with a value head on what its decoder writes."""

    is_encoder_decoder = True

    @classmethod
    def _load(cls, name: str, **kwargs: Any) -> PreTrainedModel:
        return load_seq2seq_lm(name, **kwargs)
