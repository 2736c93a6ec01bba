"""What a pipeline's YAML may hold, as strict types: unknown names, wrong types and contradictions are errors.

`stages.loading.load_config` reads a file into `PipelineConfig` and reports all errors at once. A section's `training:`
holds the fields of that trainer's config class and its `peft:` those of `peft.LoraConfig`; they are checked against
these classes (`stages.known_fields`) and not restated here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, computed_field, model_validator

from stages.schema_base import Count, FilePath, Name, Section, is_local
from stages.schema_collect import CollectSection
from stages.schema_costs import CostsSection
from stages.schema_gates import GatesSection
from stages.schema_promotion import PromotionSection
from stages.start import START, is_of_registry, registry_place

STAGES = ("prepare", "sft", "reward", "dpo", "ppo", "grpo", "evaluate", "collect")
TRAINING_STAGES = ("sft", "reward", "dpo", "ppo", "grpo")
ONLINE_STAGES = ("ppo", "grpo")
NEWEST_FIRST = ("ppo", "grpo", "dpo", "sft")
REWARD_MODEL = "models/reward"
REWARD_METRICS = "reports/reward/metrics.json"
MOST_REWARD_PATHS = 4
NO_FILE = "requirements.lock"  # every stage depends on it, so naming it once more changes nothing


class ModelInit(Section):
    """A model made on the machine: its size, and its tokenizer. Other fields are those of the model type's config."""

    model_config = ConfigDict(extra="allow")

    model_type: str = Field(description="Architecture, by its name in transformers: qwen2, llama, gpt2, ...")
    tokenizer: Literal["characters", "bpe"] = Field(
        default="characters",
        description="characters: one token a character; bpe: byte-level, trained on the prepared data.",
    )
    vocab_size: Count | None = Field(
        default=None, description="Size of a bpe vocabulary; a characters vocabulary has its own."
    )


class ModelSection(Section):
    """The policy that the line starts from: a name or folder, or made from `init`."""

    name_or_path: FilePath | None = Field(
        default=None,
        description="A name on the hub, a folder with a saved model, or a version of MLflow's registry: "
        "models:/NAME@ALIAS or models:/NAME/VERSION.",
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub; pin it, and runs repeat.")
    init: ModelInit | None = Field(
        default=None, description="Make the model from a config, with weights from the seed."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Type of the weights in training."
    )
    chat_template: FilePath | None = Field(
        default=None, description="A .jinja file, for a tokenizer that has no chat template."
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSection":
        if (self.name_or_path is None) == (self.init is None):
            raise ValueError("needs exactly one of name_or_path and init")
        if self.revision is not None and self.name_or_path is None:
            raise ValueError("revision goes with name_or_path, and there is none")
        if self.name_or_path is not None and is_of_registry(self.name_or_path):
            registry_place(self.name_or_path)
            if self.revision is not None:
                raise ValueError("revision goes with a name on the hub; a version of a registry names what it is")
        return self

    @property
    def source(self) -> str | None:
        """Where the model is read from: a version of a registry lies in a folder of the checkout."""
        return START if is_of_registry(self.name_or_path) else self.name_or_path


class Synthetic(Section):
    """Problems made on the machine from the pipeline's seed; their answers can be verified."""

    num_rows: Count = Field(description="How many rows to make.")
    tasks: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="Kinds of problem; null takes all."
    )
    noise: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of demonstrations with a wrong answer."
    )
    slips: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Share of the rejected answers of preferences that are the right one with a symbol or more written "
        "as another; all others are typical mistakes.",
    )


class Worked(Section):
    """Answers that work a solution out and end in it, as gsm8k's `48 / 2 = <<48/2=24>>24 clips` and `#### 24`."""

    mark: str = Field(
        default="####", min_length=1, description="What stands before the solution, which becomes a column of its own."
    )
    calculator_marks: Literal["strip", "keep"] = Field(
        default="strip", description="What becomes of marks such as `<<48/2=24>>`."
    )
    ending: str | None = Field(
        default=None,
        description="What the answer ends with instead of mark and solution, such as `\\boxed{{solution}}`, where "
        "`{solution}` stands for the solution; null leaves them.",
    )

    @model_validator(mode="after")
    def _has_place(self) -> "Worked":
        if self.ending is not None and "{solution}" not in self.ending:
            raise ValueError(f"ending {self.ending!r} has no place for the solution: write {{solution}} in it")
        return self


class Source(Section):
    """Where rows come from: files, a folder, a name on the hub, or made on the machine."""

    path: FilePath | None = Field(
        default=None, description="JSONL, .gz, Parquet or CSV file, a folder made by datasets, or a hub name."
    )
    split: str = Field(default="train", description="Which split of a hub name or folder.")
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub.")
    subset: str | None = Field(default=None, description="The configuration of a hub name that has several.")
    columns: dict[str, str] | None = Field(
        default=None,
        description="Columns by the names the line uses, such as `{prompt: question, completion: answer}`.",
    )
    synthetic: Synthetic | None = Field(default=None, description="Make the rows on the machine.")
    worked: Worked | None = Field(default=None, description="The answers work a solution out and end in it.")
    chat: bool = Field(default=False, description="Text becomes a turn of the user, and the assistant's answer to it.")
    system: str | None = Field(default=None, description="What the system says before such a turn of the user.")

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.synthetic is None):
            raise ValueError("needs exactly one of path and synthetic")
        if self.synthetic is not None and (self.worked is not None or self.chat):
            raise ValueError("worked and chat are about rows from a path; synthetic ones need neither")
        if self.system is not None and not self.chat:
            raise ValueError("system goes with `chat: true`")
        return self


class PrepareSection(Section):
    """From sources to checked, deduplicated, split data."""

    demonstrations: Source | None = Field(
        default=None, description="What SFT learns from; null: the preferences' chosen answers."
    )
    preferences: Source | None = Field(
        default=None, description="Pairs for the reward model and for DPO; null turns both off."
    )
    collected: FilePath | None = Field(
        default=None,
        description="Preferences collected from the line's own policies, to train on beside the others: a JSONL file "
        "of `tuneline collect export`. `tuneline rounds` sets it.",
    )
    prompts: Source | None = Field(
        default=None,
        description="What PPO and GRPO answer, with the columns that rewards read; null: the prompts of SFT's rows.",
    )
    test: Source | None = Field(
        default=None, description="What evaluation asks; null: held-out prompts of the preferences or demonstrations."
    )
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="Share of rows held out, chosen by a hash of their content."
    )
    on_bad_rows: Literal["error", "skip"] = Field(
        default="error", description="skip writes them to skipped.jsonl and counts them."
    )
    max_length: Count = Field(
        default=1024, description="Length in tokens from which the summary counts a row as too long."
    )
    max_rows: Count | None = Field(default=None, description="Use at most so many rows of each source; null takes all.")

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "PrepareSection":
        if self.demonstrations is None and self.preferences is None:
            raise ValueError("needs demonstrations, preferences, or both")
        return self


class Launch(Section):
    """How Accelerate launches a stage."""

    num_processes: Count = Field(default=1, description="Processes (one a GPU); on a CPU they talk over gloo.")
    config_file: FilePath | None = Field(
        default=None, description="A file of `accelerate config`, for FSDP, DeepSpeed or several hosts."
    )
    timeout_hours: Annotated[float, Field(gt=0)] = Field(
        default=24.0, description="The stage is stopped after so many hours."
    )
    gpus: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Slots of the limit `gpus` on Prefect's server that the stage holds while it runs; null: one a "
        "process where the machine has GPUs.",
    )


class TrainingSection(Section):
    """A stage that trains."""

    training: dict[str, Any] = Field(default_factory=dict, description="Fields of the trainer's config class.")
    peft: dict[str, Any] | None = Field(default=None, description="Fields of peft.LoraConfig; null trains all weights.")
    launch: Launch = Field(default_factory=Launch, description="How the stage is launched.")


class Reward(Section):
    """One of the rewards that an online method adds up: a function, a model, or an address that is asked."""

    name: str | None = Field(
        default=None, description="One of tuneline.rewards, or the dotted path of a function of yours."
    )
    model: Literal[True] | FilePath | None = Field(
        default=None, description="true: the line's reward model; or the name or folder of a sequence classifier."
    )
    url: str | None = Field(default=None, description="Where completions are sent, and rewards come back.")
    weight: float = Field(default=1.0, description="What the reward is multiplied by before they are added up.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the one that is named.")

    @model_validator(mode="after")
    def _one_kind(self) -> "Reward":
        if sum(given is not None for given in (self.name, self.model, self.url)) != 1:
            raise ValueError("needs exactly one of name, model and url")
        return self

    @property
    def path(self) -> str | None:
        """The file or folder in the checkout, or elsewhere on the machine, that the reward is made from."""
        if self.model is not None:
            place = REWARD_MODEL if self.model is True else self.model
            return place if self.model is True or is_local(place) else None
        module = (self.name or "").rpartition(".")[0].replace(".", "/")
        files = (f"{module}.py", f"{module}/__init__.py") if module else ()
        return next((file for file in files if Path(file).is_file()), None)


class OnlineSection(TrainingSection):
    """Online reinforcement learning of the SFT model on rewards."""

    rewards: list[Reward] = Field(default_factory=list, description="What is rewarded; none turns the stage off.")

    @property
    def reward_paths(self) -> list[str]:
        """What the rewards are made from, each path once."""
        return list(dict.fromkeys(path for reward in self.rewards if (path := reward.path) is not None))


class PPOSection(OnlineSection):
    """Proximal policy optimization; a config without this section has the stage off."""

    rewards: list[Reward] = Field(
        default_factory=lambda: [Reward(model=True)],
        description="What is rewarded: the line's reward model, if nothing is named; [] turns the stage off.",
    )
    verifier: str | None = Field(
        default=None,
        description="What judges the rollouts too, without a part in what is learned: a reward, named as in "
        "ppo.rewards; null: equality with the solution, where the prompts have one.",
    )


class GRPOSection(OnlineSection):
    """Group-relative policy optimization, or RLOO."""

    method: Literal["grpo", "rloo"] = Field(
        default="grpo", description="Which trainer: GRPOTrainer, with the fields of GRPOConfig, or RLOOTrainer."
    )


class EvaluateSection(Section):
    """The policies of the line on the test prompts, the reward model on held-out pairs."""

    num_samples: Count | None = Field(
        default=None, description="How many test rows to use, the first ones; null takes all."
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Of sampling; 0 takes the likeliest token."
    )
    max_new_tokens: Count = Field(default=256, description="Completions are cut off at this length.")
    batch_size: Count = Field(default=16, description="Prompts generated at once; changes speed only.")
    num_side_by_side: Annotated[int, Field(ge=0)] = Field(
        default=20, description="Completions shown side by side in the report."
    )
    verifier: str | None = Field(
        default=None,
        description="What tells right from wrong where a solution is known: a reward, named as in grpo.rewards; null: "
        "right is what equals the solution, but for white space.",
    )
    num_completions: Count = Field(default=1, description="Completions a prompt, from which pass@k is estimated.")
    pass_at: list[Count] = Field(default_factory=list, description="Which pass@k to estimate, such as [1, 8].")
    best_of_n: list[Count] = Field(
        default_factory=lambda: [1, 2, 4, 8, 16],
        description="Of how many answers of SFT the reward model takes the best, as a baseline; as many as the largest "
        "are drawn a prompt. [] leaves it out.",
    )


class PipelineConfig(Section):
    """A whole line, from data to evaluation."""

    name: Name = Field(description="Names the experiment and the registered models.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=17, description="All that is random comes from it.")
    model: ModelSection = Field(description="The policy that the line starts from.")
    prepare: PrepareSection = Field(description="Data preparation.")
    sft: TrainingSection = Field(default_factory=TrainingSection, description="Supervised fine-tuning.")
    reward: TrainingSection = Field(default_factory=TrainingSection, description="Reward modelling.")
    dpo: TrainingSection = Field(default_factory=TrainingSection, description="Direct preference optimization.")
    ppo: PPOSection = Field(default_factory=lambda: PPOSection(rewards=[]), description="Proximal policy optimization.")
    grpo: GRPOSection = Field(default_factory=GRPOSection, description="Group-relative policy optimization, or RLOO.")
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection, description="Evaluation.")
    collect: CollectSection | None = Field(default=None, description="Preference collection; null: none.")
    gates: GatesSection = Field(default_factory=GatesSection, description="What has to hold before a stage begins.")
    promotion: PromotionSection | None = Field(
        default=None, description="When the evaluated policy becomes champion in MLflow's registry; null: never."
    )
    costs: CostsSection = Field(default_factory=CostsSection, description="Prices, for reports.")

    @computed_field(description="What the stages read from disk, for dvc.yaml to depend on.")  # type: ignore[prop-decorator]
    @property
    def files(self) -> dict[str, str]:
        """A path for each place that may name one; where none is named, a file that the stage depends on anyway."""
        prepare, model = self.prepare, self.model
        named = {
            "demonstrations": prepare.demonstrations and prepare.demonstrations.path,
            "preferences": prepare.preferences and prepare.preferences.path,
            "prompts": prepare.prompts and prepare.prompts.path,
            "test": prepare.test and prepare.test.path,
            "model": model.source,
            "chat_template": model.chat_template,
            "sft_launch": self.sft.launch.config_file,
            "reward_launch": self.reward.launch.config_file,
            "dpo_launch": self.dpo.launch.config_file,
            "ppo_launch": self.ppo.launch.config_file,
            "grpo_launch": self.grpo.launch.config_file,
            "verifier": self.evaluate.verifier and Reward(name=self.evaluate.verifier).path,
            "ppo_verifier": self.ppo.verifier and Reward(name=self.ppo.verifier).path,
            "collected": prepare.collected,
            "collect_verifier": self.collect and self.collect.verifier and Reward(name=self.collect.verifier).path,
        }
        local = {name: path if path and (path == START or is_local(path)) else NO_FILE for name, path in named.items()}
        for name, section in (("grpo", self.grpo), ("ppo", self.ppo)):
            learns_from_it = any(reward.model is True for reward in section.rewards)
            local[f"{name}_reward_metrics"] = REWARD_METRICS if learns_from_it else NO_FILE
        has_reward_model = self.collect is not None and self.why_off("reward") is None
        local["collect_reward"] = REWARD_MODEL if has_reward_model else NO_FILE
        local["collect_policy"] = NO_FILE if self.collect is None else f"models/{self.collected_policy}"
        for prefix, section in (("", self.grpo), ("ppo_", self.ppo)):
            rewards = [*section.reward_paths, *[NO_FILE] * MOST_REWARD_PATHS][:MOST_REWARD_PATHS]
            local |= {f"{prefix}reward_{number}": path for number, path in enumerate(rewards, 1)}
        return local

    @property
    def collected_policy(self) -> str:
        """The stage whose policy is asked by collect."""
        named = "newest" if self.collect is None else self.collect.policy
        return next(name for name in NEWEST_FIRST if self.why_off(name) is None) if named == "newest" else named

    def why_off(self, stage: str) -> str | None:
        """Why a stage has nothing to do in this line; None for one that has."""
        if stage in ("reward", "dpo") and self.prepare.preferences is None:
            return "off: prepare.preferences is null"
        if stage == "ppo" and not self.ppo.rewards:
            return "off: there is no ppo section, or ppo.rewards is empty"
        if stage == "grpo" and not self.grpo.rewards:
            return "off: grpo.rewards is empty"
        if stage == "collect" and self.collect is None:
            return "off: there is no collect section"
        return None
