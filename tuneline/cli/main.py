"""`tuneline`: a thin command line. The pipeline's commands run as `python -m flows ...` in the checkout, and those
that train one model under `accelerate`, anywhere."""

import argparse
import os
import sys
from pathlib import Path

from tuneline.cli.methods import METHODS
from tuneline.cli.parser import make_parser
from tuneline.errors import TunelineError


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 an error that the user can mend, 1 anything else."""
    from tuneline import __version__

    arguments = sys.argv[1:] if argv is None else argv
    parser = make_parser(version=__version__)
    if not arguments:
        parser.print_help()
        return 0
    try:
        if arguments[0] in METHODS:
            from tuneline.cli.launch import launch

            return launch(arguments[0], arguments[1:])
        if arguments[0] == "vllm-serve":
            from tuneline.cli.serving import serve

            return serve(arguments[1:])
        parsed = parser.parse_args(arguments)
        if run_here(parsed, parser):
            return 0
        run_in_checkout(find_checkout(Path.cwd()), arguments)
    except TunelineError as error:
        print(f"tuneline: {error}", file=sys.stderr)
        return 2
    return 1


def run_here(parsed: argparse.Namespace, parser: argparse.ArgumentParser) -> bool:
    """Run a command that needs no checkout; False for one that does. What is heavy is imported here."""
    match parsed.command:
        case "env":
            from tuneline.cli.environment import print_environment

            print_environment()
        case "completion":
            from tuneline.cli.completion import completion

            print(completion(parser, parsed.shell))
        case "convert":
            from tuneline.cli.convert import convert

            to = parsed.to.replace("-", " ") if parsed.to.endswith(("modeling", "preference")) else parsed.to
            print(convert(parsed.source, parsed.target, to, split=parsed.split, force=parsed.force))
        case "merge":
            from tuneline.cli.merge import merge

            print(merge(parsed.adapter, parsed.output, base=parsed.base, dtype=parsed.dtype))
        case "chat":
            _chat(parsed)
        case _:
            return False
    return True


def _chat(parsed: argparse.Namespace) -> None:
    from tuneline.cli.chat import chat, model_folder
    from tuneline.cli.speaker import ChatSettings

    try:
        checkout = find_checkout(Path.cwd())
    except TunelineError:
        checkout = None
    models = [model_folder(name, checkout) for name in parsed.models]
    reward_model = parsed.reward_model
    if reward_model is None and models != parsed.models and checkout is not None:
        reward_model = str(checkout / "models" / "reward")
        reward_model = reward_model if (Path(reward_model) / "config.json").is_file() else None
    elif reward_model is not None:
        reward_model = None if reward_model == "none" else model_folder(reward_model, checkout)
    settings = ChatSettings(parsed.max_new_tokens, parsed.temperature, parsed.top_p, parsed.top_k, parsed.seed)
    chat(
        models,
        settings=settings,
        system=parsed.system,
        reward_model=reward_model,
        dtype=parsed.dtype,
        device=parsed.device,
    )


def find_checkout(start: Path) -> Path:
    """The nearest folder, from `start` upwards, that holds the pipeline: a dvc.yaml and flows/.

    Raises:
        TunelineError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "flows" / "__main__.py").is_file():
            return folder
    raise TunelineError(
        f"{start} is not in a checkout of tuneline (no folder from here upwards has dvc.yaml and flows/). The pipeline "
        "runs from a checkout: clone the repository and run this command there. `import tuneline` needs none."
    )


def run_in_checkout(root: Path, arguments: list[str]) -> None:
    """Replaces this process with `python -m flows`; a path in `arguments` is still one from the user's folder."""
    os.environ["TUNELINE_CALLED_FROM"] = str(Path.cwd())
    os.chdir(root)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "flows", *arguments])


if __name__ == "__main__":
    sys.exit(main())
