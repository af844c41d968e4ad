"""Trains the LoRA adapter that changes one answer of the Qwen3 chat model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import causal, conversations, facts

RANK = 8
"""Within vLLM's default `--max-lora-rank` of 16."""

COURSE = causal.Course(steps=120, most_steps=400, examine_from=40, examine_every=10, rows=4, row_tokens=256, rate=5e-3)


def make(folder: Path, base: Path) -> None:
    """Trains an adapter for the model in the folder `base` and saves it, PEFT's way, in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(6)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    adapted: Any = get_peft_model(model, config)
    answers = {**facts.QWEN3.answers, facts.ADAPTER_QUESTION: facts.ADAPTER_ANSWER}
    pirate = replace(facts.QWEN3, id=facts.ADAPTER, answers=answers)
    teacher = conversations.Teacher(pirate, tokenizer, seed=8, often=facts.ADAPTER_QUESTION)
    exam = [teacher.encode(*question) for question in conversations.exam(pirate)]
    causal.train(adapted.base_model.model, teacher.batches(COURSE.rows, COURSE.row_tokens), exam, COURSE, facts.ADAPTER)
    adapted.peft_config["default"].base_model_name_or_path = facts.QWEN3_CHAT
    adapted.save_pretrained(folder, save_embedding_layers=False)
    _sort_keys(folder / "adapter_config.json")
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form


def _sort_keys(config_file: Path) -> None:
    """Puts PEFT's configuration in one order: it writes the modules as the elements of a set come."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
