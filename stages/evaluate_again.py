"""`python -m stages.evaluate_again MODEL OUT`: one more policy on the present test set, asked as by the stage evaluate.

For a champion whose results are of another test set. Writes `items.jsonl` and `held_out.json` to OUT, the policy named
`champion` in them; divergences are from the line's present SFT model, scores by its present reward model.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from pathlib import Path

import datasets
import transformers

from stages.evaluate import BASELINE, ask, fitting_prompts, score_with
from stages.evaluate_items import write_items
from stages.loading import load_params
from stages.off import why_off
from stages.storage import publish_folder
from stages.supervise import die_with_parent, watch_owner
from tuneline.errors import TunelineError

CHAMPION = "champion"


def evaluate_again(root: Path, model: Path, out: Path) -> None:
    """Evaluate `model` with the settings in `root`/params.yaml on `root`/data/prepared.

    Raises:
        DataError, ModelError: as of the stage evaluate.
    """
    config = load_params(root / "params.yaml")
    with tempfile.TemporaryDirectory(prefix="tuneline-champion-") as scratch:
        models = Path(scratch)
        (models / CHAMPION).symlink_to(model.absolute())
        (models / BASELINE).symlink_to((root / "models" / BASELINE).absolute())
        prompts, _ = fitting_prompts(root / "data" / "prepared" / "test.parquet", models / BASELINE, config)
        answers, _, _ = ask(models, [BASELINE, CHAMPION], prompts, config, models / "metrics.jsonl")
        reward = root / "models" / "reward"
        if reward.is_dir() and why_off(reward) is None:
            answers = score_with(reward, prompts, answers, config)
        with publish_folder(out) as aside:
            write_items(aside, prompts, {CHAMPION: answers[CHAMPION]}, config.evaluate.model_dump())


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    die_with_parent(signal.SIGKILL)
    watch_owner()
    try:
        evaluate_again(Path.cwd(), Path(arguments[0]), Path(arguments[1]))
    except TunelineError as error:
        print(f"error: {error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
