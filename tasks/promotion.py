"""From an evaluated policy to a version in MLflow's registry, and from a decision to the alias `champion`.

What was decided, with its numbers, is in reports/promotion.json and in tags of the version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from stages.hashes import file_hash
from stages.loading import load_params
from stages.schema import PipelineConfig
from stages.schema_promotion import PromotionSection
from stages.storage import write_whole
from stages.tracking import git_tags
from tasks.display import display
from tasks.graph import PARAMS_FILE
from tasks.lineage_records import Records
from tasks.promotion_gate import Line, compare
from tasks.promotion_results import Candidate, champion_results, find_candidate
from tasks.promotion_words import PROMOTION_FILE
from tasks.registry import Registry, RegistryError, Version, timestamp, who
from tuneline.errors import DataError, ModelError, StageError, TunelineError
from tuneline.logging import get_logger

logger = get_logger(__name__)

_LONGEST_TAG = 4500  # characters; registries cut or refuse longer ones


class Approval(NamedTuple):
    """What a person said to a version that has passed the gate."""

    approved: bool
    by: str
    reason: str = ""


@dataclass
class Decision:
    """What became of a version, as reports/promotion.json holds it."""

    model: str
    version: str
    policy: str
    champion: str | None
    """The champion that it was held against; null where there was none."""
    held_out_digest: str
    key: str
    """Of the model, its evaluation and the settings: the same question is not decided twice."""
    alias_moved: bool = False
    passed: bool = False
    regressed: bool = False
    """Whether it was compared, and is not good enough."""
    reasons: list[str] = field(default_factory=list)
    metrics: list[Line] = field(default_factory=list)
    at: str = field(default_factory=timestamp)
    by: str = ""
    """Who approved or refused; empty where nobody was asked."""

    @property
    def verdict(self) -> str:
        return "promoted" if self.alias_moved else "passed" if self.passed else "refused"

    def headline(self) -> str:
        what = (
            "is champion"
            if self.alias_moved
            else f"stays {'challenger' if self.version != self.champion else 'champion'}"
        )
        return f"{self.model}: version {self.version} ({self.policy}) {what}: {'; '.join(self.reasons)}"


Ask = Callable[[Decision], Approval]


def promote(root: Path, ask: Ask | None = None, *, again: bool = False) -> Decision | None:
    """Register the line's evaluated policy, hold it against the champion, and move the alias if it is better.

    Args:
        root: The checkout, in which the line was run.
        ask: whom to ask where `promotion.require_approval` is set; None: nobody can be asked, so it is not promoted.
        again: decide even what was decided before.

    Returns:
        None where the config has no `promotion`, or the same was decided before.

    Raises:
        TunelineError: nothing was evaluated, or MLflow cannot be reached.
    """
    config = load_params(root / PARAMS_FILE)
    if config.promotion is None:
        (root / PROMOTION_FILE).unlink(missing_ok=True)  # what was decided under other settings is no result of these
        return None
    records = Records(root)
    candidate = find_candidate(records, config, config.promotion)
    key = _key(candidate, config.promotion)
    if not again and _decided(root) == key:
        return None
    registry = Registry(root)
    version = _register(registry, root, config, candidate)
    champion = registry.champion(version.model)
    decision = Decision(
        model=version.model,
        version=version.version,
        policy=candidate.policy,
        champion=champion.version if champion else None,
        held_out_digest=candidate.results.digest,
        key=key,
    )
    if champion is not None and champion.version == version.version:
        decision.reasons.append("it is the champion already")
        _write(root, decision)
        return decision
    registry.set_challenger(version)
    _judge(decision, records, config, candidate, registry, champion)
    if decision.passed:
        _move(decision, registry, config.promotion, version, champion, ask)
    try:
        registry.tag(version, _tags(decision))
    except RegistryError as error:  # the alias is what counts, and it has moved or stayed
        decision.reasons.append(f"the version's tags do not say so: {error}")
    _write(root, decision)
    return decision


def try_to_promote(root: Path, ask: Ask | None = None) -> Decision | None:
    """`promote` at the end of a run: what goes wrong costs the run nothing, is said, and stands in the report."""
    try:
        decision = promote(root, ask)
    except (TunelineError, OSError, ValueError, LookupError) as error:  # the latter: files that are damaged
        display.say(f"No version was promoted: {error}", "yellow")
        logger.warning("no version was promoted: %s", error, exc_info=not isinstance(error, TunelineError))
        _write(root, Decision("", "", "", None, "", key="", reasons=[str(error)]))
        return None
    if decision is not None:
        display.say(decision.headline(), "green" if decision.alias_moved else "yellow")
        logger.info("%s", decision.headline())
    return decision


def registered_name(config: PipelineConfig) -> str:
    """The registered model whose alias moves: one for the line, whatever method its policies come from."""
    return (config.promotion and config.promotion.model) or config.name


def _register(registry: Registry, root: Path, config: PipelineConfig, candidate: Candidate) -> Version:
    made = registry.of_content(f"{config.name}-{candidate.policy}", candidate.md5)  # as its stage has registered it
    origin = {name: value for name, value in made.tags.items() if name.startswith("git.")} if made else git_tags()
    origin |= {name: made.tags[name] for name in ("tuneline.identity",) if made and name in made.tags}
    lock = root / "requirements.lock"
    tags = {"dvc.path": f"models/{candidate.policy}", "dvc.md5": candidate.md5, "tuneline.stage": candidate.policy}
    tags |= origin | ({"lock.sha256": file_hash(lock, "sha256")} if lock.is_file() else {})
    version = registry.register(registered_name(config), config.name, made.run_id if made else "", tags)
    registry.tag(version, candidate.tags)
    return version


def _judge(
    decision: Decision,
    records: Records,
    config: PipelineConfig,
    candidate: Candidate,
    registry: Registry,
    champion: Version | None,
) -> None:
    options = config.promotion
    assert options is not None
    if champion is None:
        decision.passed = options.first
        decision.reasons.append(
            "there was no champion to compare it with, and promotion.first lets it be the first"
            if options.first
            else "there is no champion to compare it with, and promotion.first is false: `tuneline rollback --to "
            f"{decision.version}` makes it champion"
        )
        return
    taken_back = [move for move in registry.history(decision.model) if move.before == decision.version]
    if taken_back and taken_back[-1].kind == "rollback":
        move = taken_back[-1]
        decision.reasons.append(
            f"it was champion and was taken back by {move.by} on {move.at} ({move.why or 'no reason given'}); "
            f"`tuneline rollback --to {decision.version}` makes it champion again"
        )
        return
    try:
        other, how = champion_results(records, champion, candidate, config)
        lines, notes = compare(other, candidate.results, options, config.seed)
    except (DataError, ModelError, StageError) as error:
        decision.reasons.append(f"it cannot be compared with version {champion.version}: {error}")
        return
    decision.metrics = lines
    decision.passed = all(line.passed for line in lines)
    decision.regressed = not decision.passed
    gain = lines[0]
    failed = [line for line in lines if not line.passed]
    told = failed or [gain]
    decision.reasons += [
        f"{line.name} {line.difference:+.4g} ({line.low:+.4g} to {line.high:+.4g}), {line.verdict}" for line in told
    ]
    decision.reasons += [*([how] if how else []), *notes]


def _move(
    decision: Decision,
    registry: Registry,
    options: PromotionSection,
    version: Version,
    champion: Version | None,
    ask: Ask | None,
) -> None:
    """Move the alias, after asking where that is required."""
    by = f"{who()}, by the gate"
    if options.require_approval:
        if ask is None:
            decision.reasons.append(
                "nobody was asked, and promotion.require_approval is true: `tuneline promote --approve`"
            )
            return
        answer = ask(decision)
        decision.by = by = answer.by
        said = f": {answer.reason}" if answer.reason else ""
        decision.reasons.append(f"{'approved' if answer.approved else 'not approved'} by {by or 'nobody'}{said}")
        if not answer.approved:
            return
    registry.move_champion(version, champion, by=by, why=decision.reasons[0], kind="promotion")
    decision.alias_moved = True


def _key(candidate: Candidate, options: PromotionSection) -> str:
    asked = [candidate.md5, candidate.tags["evaluation.md5"], options.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _decided(root: Path) -> str:
    """The key of the last decision; empty where there is none."""
    try:
        return str(json.loads((root / PROMOTION_FILE).read_text()).get("key", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _tags(decision: Decision) -> dict[str, str]:
    table = [asdict(line) for line in decision.metrics]
    while len(json.dumps(table)) > _LONGEST_TAG:
        table.pop()
    return {
        "promotion.verdict": decision.verdict,
        "promotion.at": decision.at,
        "promotion.champion": decision.champion or "none",
        "promotion.reasons": "; ".join(decision.reasons)[:_LONGEST_TAG],
        "promotion.table": json.dumps(table),
        **({"promotion.by": decision.by} if decision.by else {}),
    }


def _write(root: Path, decision: Decision) -> None:
    write_whole(root / PROMOTION_FILE, json.dumps(asdict(decision), indent=1, ensure_ascii=False) + "\n")
