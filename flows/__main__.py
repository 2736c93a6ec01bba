"""`python -m flows COMMAND ...`: the pipeline's commands, in the checkout's root; `tuneline` starts it."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from flows.settings import apply_settings
from tuneline.cli.parser import make_parser
from tuneline.errors import TunelineError

STOPPED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 a stage failed, 2 what the user can mend, 130 stopped."""
    arguments = make_parser("tuneline").parse_args(argv)
    root = Path.cwd()
    console = Console(stderr=False, highlight=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    apply_settings(root)
    try:
        match arguments.command:
            case "run":
                from flows.running import run_line

                config = _config_path(arguments.config, root)
                return run_line(root, console, arguments, config, arguments.overrides)
            case "stage":
                from flows.running import run_line

                return run_line(root, console, arguments, None, [], only=[arguments.name])
            case "plan":
                from flows.showing import show_plan

                return show_plan(root, console, _config_path(arguments.config, root), arguments.overrides)
            case "sweep":
                from flows.sweep import run_sweep

                return run_sweep(root, console, arguments, _config_path(arguments.config, root))
            case "compare":
                from flows.compare import run_compare

                return run_compare(root, console, arguments)
            case "status":
                from flows.showing import show_status

                return show_status(root, console)
            case "report":
                from flows.reporting import report

                return report(root, console, arguments)
            case "server":
                from flows.serving import print_client_env, serve

                if not arguments.env:
                    serve(root, arguments.port)
                print_client_env(arguments.port)
                return 0
            case "gpus" | "notify":
                from flows.deployments import run_server_command

                return run_server_command(root, console, arguments)
            case "lineage":
                from flows.lineage import show_lineage

                wanted = dict(json=arguments.json, draw=arguments.draw, everything=arguments.all)
                return show_lineage(root, console, arguments.target, **wanted)
            case "verify":
                from flows.lineage import show_verification

                return show_verification(root, console, arguments.target)
            case "push":
                from flows.storage import push_results

                return push_results(root, console, arguments.remote, every=arguments.all)
            case "pull":
                from flows.storage import pull_results

                return pull_results(root, console, arguments.remote)
            case "rounds":
                from flows.rounds_command import run_rounds

                return run_rounds(root, console, arguments, _config_path(arguments.config, root))
            case "collect":
                from flows.collection import run_collect_command

                return run_collect_command(root, console, arguments)
            case "promote":
                from flows.promotion import decide

                return decide(root, console, arguments.approve, arguments.reason)
            case "rollback":
                from flows.promotion import go_back

                return go_back(root, console, arguments.to, arguments.reason, arguments.model)
            case "champion":
                from flows.promotion import show_history

                return show_history(root, console, arguments.model)
            case "gc":
                from flows.storage import free_space

                wanted = dict(history=arguments.history, keep_days=arguments.keep_days, verbose=arguments.verbose)
                return free_space(root, console, yes=arguments.yes, keep_versions=arguments.keep_versions, **wanted)
            case "reproduce":
                from flows.lineage import show_reproduction

                return show_reproduction(root, console, arguments.target, anyway=arguments.anyway, keep=arguments.keep)
    except TunelineError as error:
        print(f"tuneline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it was.", file=sys.stderr)
        return STOPPED
    raise AssertionError(arguments.command)


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    from tasks.display import display

    display.say("Stopping: the stage's processes are being ended ...", "yellow")
    raise KeyboardInterrupt


def _config_path(given: str, root: Path) -> Path:
    """A config as the user named it, from the folder of the call; relative to the checkout where it lies in it."""
    called_from = Path(os.environ.get("TUNELINE_CALLED_FROM", root))
    path = (called_from / given).absolute()
    if not path.exists() and (root / given).exists():
        path = root / given
    if not path.is_file():
        near = _nearest_config(path, root)
        raise TunelineError(f"{given} {'is no file' if path.exists() else 'does not exist'}{near}.")
    return path.relative_to(root) if path.is_relative_to(root) else path


def _nearest_config(path: Path, root: Path) -> str:
    import difflib

    known = sorted(str(config.relative_to(root)) for config in (root / "configs").glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, [Path(name).stem for name in known], n=1, cutoff=0.4)
    if near:
        return f"; did you mean configs/{near[0]}.yaml?"
    return f"; there are {', '.join(known)}" if known else ""


if __name__ == "__main__":
    sys.exit(main())
