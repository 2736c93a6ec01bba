"""What the trainers share that learn from completions they draw: sampling, rollout engine, reference, rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tuneline.errors import ConfigError
from tuneline.rollout.protocol import Sampling
from tuneline.trainers.base_config import BaseConfig, read_json_object
from tuneline.trainers.without_effect import say_what_has_no_effect


@dataclass
class OnlineConfig(BaseConfig):
    """Names and defaults of TRL 1.16's GRPO and RLOO where both have them; options of our own stand last."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *BaseConfig._VALID_DICT_FIELDS,
        "generation_kwargs",
        "chat_template_kwargs",
        "transformers_continuous_batching_config",
    ]
    _least_generations: ClassVar[int] = 2  # a completion is compared with others of its prompt

    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Columns stay: the reward functions read them."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest prompt with its completion, in tokens. None: what the model can read."}
    )
    disable_dropout: bool = field(default=False, metadata={"help": "Turn every dropout of policy and reference off."})

    # Sampling
    num_generations: int = field(default=8, metadata={"help": "Completions a prompt, the group that is compared."})
    num_generations_eval: int | None = field(
        default=None, metadata={"help": "Completions a prompt in evaluation. None: num_generations."}
    )
    max_completion_length: int = field(default=512, metadata={"help": "Longest completion, in tokens."})
    shuffle_dataset: bool = field(default=True, metadata={"help": "Shuffle the prompts, by the seed."})
    generation_batch_size: int | None = field(
        default=None,
        metadata={"help": "Completions drawn at once, over all processes. None: by steps_per_generation."},
    )
    steps_per_generation: int | None = field(
        default=None, metadata={"help": "Micro-batches drawn at once. None: gradient_accumulation_steps."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits, in sampling and in training."})
    top_p: float = field(default=1.0, metadata={"help": "Draw from the likeliest tokens of this joint probability."})
    top_k: int = field(default=0, metadata={"help": "Draw from so many of the likeliest tokens. 0: from all."})
    min_p: float | None = field(
        default=None, metadata={"help": "Draw from tokens of at least this share of the likeliest one's probability."}
    )
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Above 1, tokens that were written already become less likely."}
    )
    generation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Sampling options by name, over those above (max_new_tokens among them)."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keywords for the chat template, such as enable_thinking."}
    )

    # Rollout engine
    use_vllm: bool = field(default=False, metadata={"help": "Draw completions with vLLM."})
    vllm_mode: str = field(
        default="colocate", metadata={"help": "colocate: in the training process. server: in a process of its own."}
    )
    vllm_model_impl: str = field(default="vllm", metadata={"help": "vLLM's implementation, vllm or transformers."})
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "colocate: give vLLM's memory to training between rollouts."}
    )
    vllm_structured_outputs_regex: str | None = field(
        default=None, metadata={"help": "A regular expression that completions must match."}
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "URL of a running server. None: from host and port."}
    )
    vllm_server_host: str = field(default="127.0.0.1", metadata={"help": "Host of a running server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of a running server."})
    vllm_server_timeout: float = field(default=240.0, metadata={"help": "Seconds until a server must be healthy."})
    vllm_gpu_memory_utilization: float = field(default=0.3, metadata={"help": "colocate: vLLM's share of the memory."})
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "vLLM's longest sequence."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share a model in vLLM."})

    # Objective
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL penalty. 0: no reference model is loaded."})
    num_iterations: int = field(default=1, metadata={"help": "Passes over the completions of one generation."})
    epsilon: float = field(default=0.2, metadata={"help": "How far below 1 the probability ratio counts."})
    epsilon_high: float | None = field(default=None, metadata={"help": "How far above 1. None: epsilon."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight a reward function. None: 1 each."}
    )
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Do not learn from completions that were cut off."}
    )
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Move the reference towards the policy (TR-DPO, arXiv:2404.09656)."}
    )
    ref_model_mixup_alpha: float = field(default=0.6, metadata={"help": "The policy's share in a moved reference."})
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Optimizer steps between two moves of the reference."}
    )

    # Logging
    log_completions: bool = field(default=False, metadata={"help": "Print samples, and write all as Parquet."})
    num_completions_to_print: int | None = field(default=None, metadata={"help": "Samples printed. None: all."})
    log_unique_prompts: bool = field(default=False, metadata={"help": "Print one sample a prompt."})

    # Taken from TRL's configurations; see tuneline.trainers.without_effect
    cache_implementation: str | None = field(default=None, metadata={"help": "No effect: the engine has its own."})
    ds3_gather_for_generation: bool = field(default=True, metadata={"help": "No effect: under DeepSpeed vLLM draws."})
    vllm_group_port: int = field(default=51216, metadata={"help": "No effect: weights take no socket of their own."})
    use_transformers_continuous_batching: bool = field(
        default=False, metadata={"help": "No effect: the engine always goes on with the next completion in line."}
    )
    transformers_continuous_batching_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "No effect: the engine has batches of its own."}
    )
    use_transformers_paged: bool = field(default=False, metadata={"help": "No effect: the engine has its own cache."})
    log_multimodal: bool = field(
        default=True, metadata={"help": "Write the images of prompts too, where completions are written."}
    )

    # What TRL has not
    eos_token: str | None = field(default=None, metadata={"help": "End token, by name. None: the tokenizer's."})
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A .jinja file, or a tokenizer whose chat template and special tokens to take."}
    )
    vllm_server_start: bool = field(
        default=False, metadata={"help": "server: start it here, on a free port of the loopback address."}
    )
    vllm_server_python: str | None = field(
        default=None, metadata={"help": "Interpreter of the environment with vLLM. None: this one."}
    )
    vllm_request_timeout: float = field(default=600.0, metadata={"help": "Seconds for any one call to a server."})
    generation_tokens: int = field(
        default=2**18, metadata={"help": "Tokens of keys and values that the transformers engine may hold at once."}
    )
    reward_timeout: float = field(default=60.0, metadata={"help": "Seconds that a reward function may take a batch."})
    on_reward_error: str = field(
        default="skip", metadata={"help": "skip: a failed reward costs its sample, and is counted. raise: it stops."}
    )
    skip_zero_advantages: bool = field(
        default=True, metadata={"help": "Leave out completions that teach nothing, where nothing else reads them."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("generation_kwargs", "chat_template_kwargs", "transformers_continuous_batching_config"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, read_json_object(name, getattr(self, name)))
        say_what_has_no_effect(self)
        self._settle_generation_batch()
        for name, least in (
            ("num_iterations", 1),
            ("max_completion_length", 1),
            ("num_generations", self._least_generations),
        ):
            if getattr(self, name) < least:
                reason = "; a group needs others to compare with" if name == "num_generations" and least > 1 else ""
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}{reason}.")
        if self.auto_find_batch_size:
            raise ConfigError(
                "auto_find_batch_size=True would break up the groups that rewards are compared in; set it to False "
                "and lower per_device_train_batch_size."
            )
        if self.on_reward_error not in ("skip", "raise"):
            raise ConfigError(f"on_reward_error={self.on_reward_error!r} is unknown; use skip or raise.")
        if self.vllm_mode not in ("colocate", "server"):
            raise ConfigError(f"vllm_mode={self.vllm_mode!r} is unknown; use colocate or server.")
        if self.temperature <= 0:
            raise ConfigError(
                f"temperature={self.temperature} must be above 0: a policy that draws nothing explores none."
            )

    def _settle_generation_batch(self) -> None:
        """steps_per_generation and generation_batch_size from one another."""
        step = self.per_device_train_batch_size * self.world_size
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            if self.generation_batch_size != step * self.steps_per_generation:  # equal when made from a saved config
                raise ConfigError(
                    f"generation_batch_size={self.generation_batch_size} and steps_per_generation="
                    f"{self.steps_per_generation} contradict each other; give one of them."
                )
        elif self.generation_batch_size is not None:
            if self.generation_batch_size % step:
                raise ConfigError(
                    f"generation_batch_size={self.generation_batch_size} is no multiple of {step} completions, "
                    "per_device_train_batch_size x processes."
                )
            self.steps_per_generation = self.generation_batch_size // step
        else:
            self.steps_per_generation = self.steps_per_generation or self.gradient_accumulation_steps
            self.generation_batch_size = step * self.steps_per_generation
        total, n = self.generation_batch_size, self.num_generations
        if n > 0 and total % n:
            divisors = [d for d in range(self._least_generations, total + 1) if total % d == 0]
            raise ConfigError(
                f"num_generations={n} does not divide the generation batch of {total} completions "
                f"(per_device_train_batch_size x processes x steps_per_generation); use one of {divisors}."
            )

    def sampling(self, stop_token_ids: list[int]) -> Sampling:
        """How completions are drawn."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_completion_length,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k or 0,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        given = self.generation_kwargs or {}
        assert isinstance(given, dict)
        unknown = sorted(set(given) - set(options))
        if unknown:
            raise ConfigError(f"generation_kwargs has {unknown}; it can have {sorted(options)}.")
        return Sampling(**{**options, **given}, stop_token_ids=tuple(stop_token_ids))

    @property
    def template_kwargs(self) -> dict[str, Any]:
        given = self.chat_template_kwargs or {}
        assert isinstance(given, dict)
        return given

    @property
    def num_batches_a_generation(self) -> int:
        assert self.steps_per_generation is not None
        return self.steps_per_generation

    @property
    def completions_a_prompt_in_evaluation(self) -> int:
        return self.num_generations_eval or self.num_generations
