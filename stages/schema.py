"""What a pipeline's YAML may hold, as strict types: unknown names, wrong types and contradictions are errors.

`stages.loading.load_config` reads a file into `PipelineConfig` and reports all errors at once. A section's `training:`
holds the fields of that trainer's config class and its `peft:` those of `peft.LoraConfig`; they are checked against
these classes (`stages.known_fields`) and not restated here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, computed_field, model_validator

STAGES = ("prepare", "sft", "reward", "dpo", "evaluate")
TRAINING_STAGES = ("sft", "reward", "dpo")
NO_FILE = "requirements.lock"  # every stage depends on it, so naming it once more changes nothing

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Count = Annotated[int, Field(ge=1)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(lambda path: str(Path(path).expanduser()))]

_FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".gz", ".parquet", ".csv", ".jinja", ".yaml", ".yml")


def is_local(path: str) -> bool:
    """Whether a path means a file or folder, and not a name on the hub."""
    return path.startswith(("/", "./", "../")) or path.endswith(_FILE_SUFFIXES) or Path(path).exists()


class Section(BaseModel):
    """Base of all sections: nothing unknown, no conversion from one type to another, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


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
        default=None, description="A name on the hub, or a folder with a saved model."
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
        return self


class Synthetic(Section):
    """Problems made on the machine from the pipeline's seed; their answers can be verified."""

    num_rows: Count = Field(description="How many rows to make.")
    tasks: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="Kinds of problem; null takes all."
    )
    noise: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of demonstrations with a wrong answer."
    )


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

    @model_validator(mode="after")
    def _one_origin(self) -> "Source":
        if (self.path is None) == (self.synthetic is None):
            raise ValueError("needs exactly one of path and synthetic")
        return self


class PrepareSection(Section):
    """From sources to checked, deduplicated, split data."""

    demonstrations: Source | None = Field(
        default=None, description="What SFT learns from; null: the preferences' chosen answers."
    )
    preferences: Source = Field(description="Pairs for the reward model and for DPO.")
    test: Source | None = Field(
        default=None, description="What evaluation asks; null: held-out prompts of the preferences."
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


class Launch(Section):
    """How Accelerate launches a stage."""

    num_processes: Count = Field(default=1, description="Processes (one a GPU); on a CPU they talk over gloo.")
    config_file: FilePath | None = Field(
        default=None, description="A file of `accelerate config`, for FSDP, DeepSpeed or several hosts."
    )
    timeout_hours: Annotated[float, Field(gt=0)] = Field(
        default=24.0, description="The stage is stopped after so many hours."
    )


class TrainingSection(Section):
    """A stage that trains."""

    training: dict[str, Any] = Field(default_factory=dict, description="Fields of the trainer's config class.")
    peft: dict[str, Any] | None = Field(default=None, description="Fields of peft.LoraConfig; null trains all weights.")
    launch: Launch = Field(default_factory=Launch, description="How the stage is launched.")


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


class PipelineConfig(Section):
    """A whole line, from data to evaluation."""

    name: Name = Field(description="Names the experiment and the registered models.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=17, description="All that is random comes from it.")
    model: ModelSection = Field(description="The policy that the line starts from.")
    prepare: PrepareSection = Field(description="Data preparation.")
    sft: TrainingSection = Field(default_factory=TrainingSection, description="Supervised fine-tuning.")
    reward: TrainingSection = Field(default_factory=TrainingSection, description="Reward modelling.")
    dpo: TrainingSection = Field(default_factory=TrainingSection, description="Direct preference optimization.")
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection, description="Evaluation.")

    @computed_field(description="What the stages read from disk, for dvc.yaml to depend on.")  # type: ignore[prop-decorator]
    @property
    def files(self) -> dict[str, str]:
        """A path for each place that may name one; where none is named, a file that the stage depends on anyway."""
        prepare, model = self.prepare, self.model
        named = {
            "demonstrations": prepare.demonstrations and prepare.demonstrations.path,
            "preferences": prepare.preferences.path,
            "test": prepare.test and prepare.test.path,
            "model": model.name_or_path,
            "chat_template": model.chat_template,
            "sft_launch": self.sft.launch.config_file,
            "reward_launch": self.reward.launch.config_file,
            "dpo_launch": self.dpo.launch.config_file,
        }
        return {name: path if path and is_local(path) else NO_FILE for name, path in named.items()}
