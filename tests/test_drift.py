"""The two measures of forgetting against plain transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from tests.tiny_text import tiny_text_model
from tests.toy import EOS, VOCABULARY, ToyAdapter, toy_args, toy_rows
from text_sdft import TextAdapter
from text_sdft.core import Example, SDFTConfig
from text_sdft.experiments.drift import MOST, StartReading, drift, start_reading
from text_sdft.training import SDFTTrainer

PROMPTS = ["1 + 1?", "What is the capital of France?", "Hi"]
EXAMPLES = [
    Example(id=str(i), messages=[{"role": "user", "content": prompt}], reference="two") for i, prompt in enumerate(PROMPTS)
]


def trainer(**settings) -> SDFTTrainer:
    model, tokenizer = tiny_text_model()
    args = SDFTConfig("runs/x", **{"use_cpu": True, "max_completion_length": 6, "report_to": [], **settings})
    return SDFTTrainer(model, args, adapter=TextAdapter(), processing_class=tokenizer)


def started(made: SDFTTrainer) -> StartReading:
    begun = start_reading(made, {"old": EXAMPLES}, batch_size=2)
    assert begun is not None
    return begun


def move(made: SDFTTrainer) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@torch.no_grad()
def test_kl_and_perplexity_are_those_of_a_direct_computation():
    made = trainer()
    start, tokenizer = tiny_text_model()
    begun = started(made)
    move(made)
    kl, nll = [], []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        said = start.generate(ids, max_new_tokens=6, do_sample=False)
        p, q = (model(said).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1) for model in (start, made.module))
        kl.append((p.exp() * (p - q)).sum(-1))
        right = torch.tensor([tokenizer("two")["input_ids"] + [tokenizer.eos_token_id]])
        logp = made.module(torch.cat([ids, right], dim=1)).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
        nll.append(-logp.gather(-1, right[0, :, None]).squeeze(-1))
    found = drift(made, begun)
    assert found["kl"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4) and found["kl"] > 0.01
    assert found["perplexity"] == pytest.approx(float(torch.cat(nll).mean().exp()), rel=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_an_untrained_model_has_not_moved(bf16):
    made = trainer(bf16=bf16)
    assert drift(made, started(made))["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_bias_of_the_output_layer_is_that_of_the_start(tmp_path):
    """(Phi has one.) Training changes it in place, as it does the weights."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = PhiForCausalLM(PhiConfig(vocab_size=VOCABULARY, **size, bos_token_id=None, eos_token_id=EOS)).eval()
    trainer = SDFTTrainer(model, toy_args(tmp_path), adapter=ToyAdapter(), train_dataset=toy_rows(4))
    start = start_reading(trainer, {"old": trainer.queries}, 4)
    assert start is not None
    with torch.no_grad():
        model.lm_head.bias[5] += 3.0
    assert drift(trainer, start)["kl"] > 0.01


def test_it_is_measured_on_prompts_of_prior_skills():
    made = trainer(max_completion_length=1)
    sets = {"new": EXAMPLES[:1], "validation": EXAMPLES[1:2]}
    assert start_reading(made, sets, 2) is None
    begun = start_reading(made, {**sets, "old": EXAMPLES[2:]}, 2)
    assert begun is not None and [batch for batch, _, _ in begun.batches] == [EXAMPLES[2:]]
    many = start_reading(made, {"old": [replace(EXAMPLES[0], id=str(i)) for i in range(2 * MOST)]}, MOST)
    assert many is not None and [len(batch) for batch, _, _ in many.batches] == [MOST], "what they need stays in memory"
