"""Flags of the commands that run a model: `tuneline chat` and `tuneline vllm-serve`."""

import argparse


def add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a stage of the line (sft, dpo, ...), a folder, or a name on a hub"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the system says first")
    parser.add_argument(
        "--reward-model",
        metavar="MODEL",
        help="scores each answer (default: the line's, where models are stages of it; none: no scores)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="answers end here (default 512)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: the likeliest token (default: the model's)")
    parser.add_argument("--top-p", type=float, metavar="P", help="(default: the model's)")
    parser.add_argument("--top-k", type=int, metavar="K", help="(default: the model's)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same answers again (default: others each time)")
    parser.add_argument("--dtype", default="auto", metavar="TYPE", help="such as bfloat16 (default: the model's)")
    parser.add_argument("--device", metavar="DEVICE", help="such as cuda:1 (default: a GPU where there is one)")
