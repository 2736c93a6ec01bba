"""Rules that every trainer and its options keep."""

import ast
from dataclasses import fields
from pathlib import Path

from transformers import Trainer, TrainingArguments

from tuneline import (
    BCOConfig,
    CPOConfig,
    DistillationConfig,
    DPOConfig,
    GKDConfig,
    IterativeSFTConfig,
    KTOConfig,
    NashMDConfig,
    OnlineDPOConfig,
    ORPOConfig,
    PRMConfig,
    RewardConfig,
    SFTConfig,
    TPOConfig,
    XPOConfig,
)
from tuneline.trainers.online_config import OnlineConfig

CONFIGS = (
    SFTConfig,
    RewardConfig,
    PRMConfig,
    DPOConfig,
    KTOConfig,
    BCOConfig,
    ORPOConfig,
    CPOConfig,
    TPOConfig,
    IterativeSFTConfig,
)
SOURCES = sorted((Path(__file__).parents[2] / "tuneline" / "trainers").glob("*.py"))


def test_trainers_override_no_private_method_of_transformers():
    private = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")} | {"train"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                overridden = {f.name for f in node.body if isinstance(f, ast.FunctionDef)} & private
                assert not overridden, f"{path.name}: {node.name} overrides {overridden}"


def test_a_config_names_its_options_once_and_explains_each():
    code = "\n".join(path.read_text() for path in SOURCES)
    inherited = {f.name for f in fields(TrainingArguments)}
    of_online = {f.name for f in fields(OnlineConfig)}
    accepted_from_trl = {"padding_free", "pad_to_multiple_of"}  # say so in their help; rows of trees have no padding
    for config in (
        SFTConfig,
        RewardConfig,
        DPOConfig,
        KTOConfig,
        ORPOConfig,
        CPOConfig,
        TPOConfig,
        BCOConfig,
        PRMConfig,
        OnlineDPOConfig,
        XPOConfig,
        NashMDConfig,
        DistillationConfig,
        GKDConfig,
    ):
        for option in fields(config):
            if option.name in inherited or (issubclass(config, OnlineConfig) and option.name in of_online):
                continue
            assert option.metadata.get("help"), f"{config.__name__}.{option.name} has no help"
            is_read = any(f"{holder}.{option.name}" in code for holder in ("args", "self", "config"))
            assert is_read or option.name in accepted_from_trl, f"{config.__name__}.{option.name} is read nowhere"
