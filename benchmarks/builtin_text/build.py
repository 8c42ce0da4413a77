"""Builds the builtin language model and the data of its quickstart, from nothing.

    python benchmarks/builtin_text/build.py --out text_sdft/tiny-qwen3 --data examples/animals

The model has Qwen3's architecture. It learns three things: to answer from a document in its prompt, to answer about forty
animals by heart, and nothing about any other animal. A build that was cut off goes on where it stood (``OUT/.work``).
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from pathlib import Path

import numpy as np
import torch
from animals import KNOWN, RELATIONS, Animal, animals, document, known_animals, question
from tokenizers import pre_tokenizers
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.append(str(Path(__file__).parent.parent / "builtin_model"))
from checkpoints import load_state, one_cycle, save_state
from processor import word_tokenizer

from text_sdft.core.templates import render
from vlm_sdft.zoo.vocabulary import SYLLABLES

SPECIAL = ("<|endoftext|>", "<|unk|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS, BATCH, LEARNING_RATE, WARMUP = 3000, 32, 2e-3, 100
#: (animals of a document, facts about each, share of right answers at which the next stage begins).
STAGES = ((1, 1, 0.95), (1, 2, 0.95), (1, 4, 0.97), (2, 4, 0.97), (3, 4, 2.0))
CHECK_EVERY, SAVE_EVERY = 50, 500
#: The share of sequences that are asked about the forty animals, without a document.
BY_HEART = 0.4
#: Questions after one document, while the model is made.
TURNS = 3


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the facts and the template, syllables, and letters for any other text; all in lower case."""
    sentences = [text for relation in RELATIONS.values() for text in (*relation.tellings, *relation.questions)]
    values = [value for relation in RELATIONS.values() for value in relation.values or ()]
    frame = str(render([{"role": "user", "content": ""}], [], " ", "context")[-1]["content"])
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    plain = " ".join([*sentences, *values, frame, "user assistant system"]).replace("{name}", " ").replace("{value}", " ")
    words = [word.lower() for word, _ in split(plain)]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [f"##{piece}" for piece in (*SYLLABLES, *string.ascii_lowercase, *string.digits)]
    vocabulary = list(dict.fromkeys([*SPECIAL, *words, *SYLLABLES, *letters, *pieces]))
    return word_tokenizer(vocabulary, SPECIAL, model_max_length=1024, chat_template=CHAT_TEMPLATE)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Random weights: four layers of width 128."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5_000_000.0},
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def conversation(stage: int, known: list[Animal], rng: np.random.Generator) -> list[dict[str, str]]:
    """Questions and answers, the first one behind a document, or all about animals known by heart."""
    if rng.random() < BY_HEART:
        told, shown = known, None
    else:
        count, facts, _ = STAGES[rng.integers(stage + 1)]
        told = animals(count, rng, frozenset(animal.name for animal in known))
        shown = document(told, rng, facts)
    turns: list[dict[str, str]] = []
    for turn in range(TURNS):
        while True:
            animal, kind = told[rng.integers(len(told))], str(rng.choice(list(RELATIONS)))
            if shown is None or _is_told(animal, kind, shown):
                break
        query = [{"role": "user", "content": question(animal, kind, int(rng.integers(3)))}]
        turns += render(query, [], shown, "context") if shown is not None and turn == 0 else query
        turns.append({"role": "assistant", "content": animal.facts[kind]})
    return turns


def _is_told(animal: Animal, kind: str, shown: str) -> bool:
    tellings = RELATIONS[kind].tellings
    return any(telling.format(name=animal.name, value=animal.facts[kind]) in shown for telling in tellings)


def encoded(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Ids of a conversation through the chat template, and what is to be predicted there (-100: nothing)."""
    ids: list[int] = []
    labels: list[int] = []
    for i in range(0, len(turns), 2):
        prompt = tokenizer.apply_chat_template([turns[i]], tokenize=False, add_generation_prompt=True)
        question_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(turns[i + 1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ids += [*question_ids, *answer_ids]
        labels += [*[-100] * len(question_ids), *answer_ids]
    return ids, labels


def batch(
    stage: int, known: list[Animal], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Right-padded ids, mask and labels [B, L]."""
    rows = [encoded(conversation(stage, known, rng), tokenizer) for _ in range(BATCH)]
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([[*ids, *[tokenizer.pad_token_id] * (longest - len(ids))] for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([[*labels, *[-100] * (longest - len(labels))] for _, labels in rows]),
    }


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, work: Path, seed: int) -> dict[str, object]:
    """Train through the stages; goes on from ``work``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    state = load_state(work / "state.safetensors", model, optimizer) or {"step": 0, "stage": 0, "passed": []}
    known, losses, right = known_animals(), [], []
    for step in range(state["step"], STEPS):
        given = batch(state["stage"], known, tokenizer, np.random.default_rng([seed, step]))
        labels = given.pop("labels")[:, 1:]
        where = labels != -100
        logits = model(**given).logits[:, :-1][where]
        loss = F.cross_entropy(logits, labels[where])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * one_cycle(step, STEPS, WARMUP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        right.append(float((logits.argmax(-1) == labels[where]).float().mean()))
        if (step + 1) % CHECK_EVERY == 0:
            share = float(np.mean(right[-CHECK_EVERY:]))
            print(
                f"step {step + 1}: stage {state['stage']}, loss {np.mean(losses[-CHECK_EVERY:]):.3f}, right {share:.3f}",
                flush=True,
            )
            if share >= STAGES[state["stage"]][2]:
                state["stage"] += 1
                state["passed"].append(step + 1)
        state["step"] = step + 1
        if state["step"] % SAVE_EVERY == 0:
            save_state(work / "state.safetensors", model, optimizer, state)
    return state


@torch.no_grad()
def share_right(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: list[tuple[list[dict[str, str]], str]]
) -> float:
    """The share of greedy answers that are right, of conversations that end in a question."""
    prompts = [tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns, _ in asked]
    given = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids = model.generate(**given, max_new_tokens=8, do_sample=False)[:, given["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return float(np.mean([answer == right for answer, (_, right) in zip(answers, asked, strict=True)]))


def skills(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """What the model can do, on animals that no training sequence had under these facts."""
    rng, known = np.random.default_rng(7), known_animals()
    taken = frozenset(animal.name for animal in known)
    heart = [(a, k, w) for a in known for k in RELATIONS for w in range(3)]
    found = {
        "by heart": share_right(
            model, tokenizer, [([{"role": "user", "content": question(*q)}], q[0].facts[q[1]]) for q in heart]
        )
    }
    for count in (1, 2, 3):
        asked = []
        for _ in range(200):
            told = animals(count, rng, taken)
            animal, kind = told[rng.integers(count)], str(rng.choice(list(RELATIONS)))
            query = [{"role": "user", "content": question(animal, kind, int(rng.integers(3)))}]
            asked.append((render(query, [], document(told, rng), "context"), animal.facts[kind]))
        found[f"from a document about {count}"] = share_right(model, tokenizer, asked)
    return found


def write_data(folder: Path, seed: int) -> None:
    """New animals to learn from documents, and what the model knows: the quickstart's rows.

    Every fact is trained on in two wordings and tested in the third.
    """
    rng, known = np.random.default_rng([seed, 1]), known_animals()
    new = animals(6, rng, frozenset(animal.name for animal in known))
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": [], "retain": [], "old": []}
    for animal in new:
        told = document([animal], rng)
        for kind, value in animal.facts.items():
            rows["train"] += [{"prompt": question(animal, kind, w), "privileged_context": told} for w in (0, 1)]
            rows["test"].append({"prompt": question(animal, kind, 2), "privileged_context": told, "reference": value})
    for animal in known[: KNOWN // 2]:
        rows["retain"] += [{"prompt": question(animal, kind, int(rng.integers(3)))} for kind in RELATIONS]
    for animal in known[KNOWN // 2 :]:
        rows["old"] += [{"prompt": question(animal, kind, 2), "reference": value} for kind, value in animal.facts.items()]
    for _ in range(20):
        told = animals(1, rng, frozenset(animal.name for animal in [*known, *new]))
        animal, kind = told[0], str(rng.choice(list(RELATIONS)))
        prompt = render([{"role": "user", "content": question(animal, kind, 2)}], [], document(told, rng), "context")[-1][
            "content"
        ]
        rows["old"].append({"prompt": prompt, "reference": animal.facts[kind]})
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--data", type=Path, required=True, help="folder for the rows")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, sequences and rows")
    arguments = parser.parse_args()
    work = arguments.out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n", encoding="utf-8")
    tokenizer = new_tokenizer()
    write_data(arguments.data, arguments.seed)
    model = new_model(tokenizer, arguments.seed)
    state = train(model, tokenizer, work, arguments.seed)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=8
    )
    model.eval().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    found = skills(model, tokenizer)
    print(json.dumps(found | state, indent=1))
    (work / "skills.json").write_text(json.dumps(found | state, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
