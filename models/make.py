"""Make a model from its description: ``python make.py MODEL_DIR OUT_DIR``.

MODEL_DIR holds config.json (a Llama, as transformers spells it), model.json (seed, training) and,
where the model has to know something, answers.json. OUT_DIR then holds what ``vllm serve`` reads.
With answers.json the model is trained until it repeats every answer exactly; without, its weights
stay random. Needs no network and no home directory, and writes the same bytes each time on one
kind of machine. Runs with the Python environment of the image; it imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Before torch is imported: no network, no telemetry, and vector code that does not depend on how
# new the processor is (the sums, and with them the trained weights, would).
os.environ.update(HF_HUB_OFFLINE="1", ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
os.environ.setdefault("HOME", "/nonexistent")

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

END, PAD = "<|end|>", "<|pad|>"
#: Characters in answers are single tokens and the prompt ends in a blank, so an answer is exactly
#: the text generated; completions and chat share this one form.
QUESTION, ANSWER = "Question: ", "\nAnswer: "
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content + eos_token + '\\n' }}"
    f"{{% else %}}{{{{ {QUESTION!r} + message.content + {ANSWER!r} }}}}{{% endif %}}"
    "{% endfor %}"
)
IGNORED = -100  # a target that cross_entropy leaves out


class Unfit(Exception):
    """The model did not become what its description asks for."""


def prompt(question: str) -> str:
    """What the model reads for a question; the chat template renders the same."""
    return f"{QUESTION}{question}{ANSWER}"


def byte_tokenizer(size: int) -> Tokenizer:
    """One token a byte, no merges, then END, PAD and reserved ones up to ``size`` tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved{i}|>" for i in range(size - len(alphabet) - 2)]
    tokenizer.add_special_tokens([END, PAD, *reserved])
    if tokenizer.get_vocab_size() != size:
        raise Unfit(f"config.json: vocab_size is {size}; the bytes and two more need 258 at least")
    return tokenizer


def pairs(tokenizer: Tokenizer, answers: list[dict[str, str]]) -> list[tuple[list[int], list[int]]]:
    """For each answer, the token ids read and, position by position, the ids to be predicted."""
    result = []
    for entry in answers:
        asked = tokenizer.encode(prompt(entry["question"])).ids
        said = [*tokenizer.encode(entry["answer"]).ids, tokenizer.token_to_id(END)]
        result.append(((asked + said)[:-1], [IGNORED] * (len(asked) - 1) + said))
    return result


def train(
    model: LlamaForCausalLM, examples: list[tuple[list[int], list[int]]], how: dict[str, Any]
) -> None:
    """Train on all examples at once until the loss is at most ``how["loss"]``."""
    width = max(len(read) for read, _ in examples)
    # Causal attention: padding on the right is never looked at, so no mask and any filler will do.
    read = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in examples])
    want = torch.tensor([ids + [IGNORED] * (width - len(ids)) for _, ids in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=how["learning_rate"])
    for step in range(1, how["max_steps"] + 1):
        logits = model(input_ids=read, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), want.flatten(), ignore_index=IGNORED)
        if loss.item() <= how["loss"]:
            print(f"loss {loss.item():.4f} after {step - 1} steps")
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise Unfit(
        f"the loss is {loss.item():.4f} after {how['max_steps']} steps, not {how['loss']} or less"
    )


@torch.no_grad()
def examine(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    answers: list[dict[str, str]],
    min_probability: float,
) -> None:
    """Raise Unfit unless greedy decoding repeats every answer, END included.

    One pass over question and answer shows it: if at each position the likeliest token is the
    right one, decoding step by step takes the very same way.
    """
    for entry, (read, want) in zip(answers, pairs(tokenizer, answers), strict=True):
        start = next(i for i, token in enumerate(want) if token != IGNORED)
        logits = model(input_ids=torch.tensor([read]), use_cache=False).logits[0, start:].float()
        said = logits.argmax(-1).tolist()
        if said != want[start:]:
            text = tokenizer.decode(said, skip_special_tokens=False)
            raise Unfit(
                f"question {entry['question']!r}: the answer would be {text!r}, "
                f"not {entry['answer'] + END!r}"
            )
        chosen = torch.tensor(want[start:]).unsqueeze(-1)
        lowest = logits.softmax(-1).gather(-1, chosen).min().item()
        print(f"{lowest:.3f} {entry['question']} {entry['answer']}")
        if lowest < min_probability:
            raise Unfit(
                f"question {entry['question']!r}: a right token has probability {lowest:.3f} "
                f"only; rounding could change it (wanted: {min_probability})"
            )


def write(model: LlamaForCausalLM, config: dict[str, Any], tokenizer: Tokenizer, out: Path) -> None:
    """Write the directory that ``vllm serve`` reads."""
    documents = {
        "config.json": config,
        "generation_config.json": {
            "eos_token_id": config["eos_token_id"],
            "pad_token_id": config["pad_token_id"],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, document in documents.items():
        (out / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    weights = {name: tensor.contiguous() for name, tensor in sorted(model.state_dict().items())}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # save_file leaves 0600


def make(source: Path, out: Path) -> None:
    """Read the description in ``source`` and write the model to ``out``."""
    how = json.loads((source / "model.json").read_text())["training"]
    config = json.loads((source / "config.json").read_text())
    torch.manual_seed(how["seed"])
    torch.set_num_threads(how["threads"])
    torch.use_deterministic_algorithms(True)

    tokenizer = byte_tokenizer(config["vocab_size"])
    if tokenizer.token_to_id(END) != config["eos_token_id"]:
        raise Unfit(f"config.json: eos_token_id has to be {tokenizer.token_to_id(END)}")
    shape = LlamaConfig.from_dict(config)
    shape._attn_implementation = "eager"  # the plainest sums
    model = LlamaForCausalLM(shape).float()
    if (source / "answers.json").exists():
        answers = json.loads((source / "answers.json").read_text())
        train(model, pairs(tokenizer, answers), how)
        model = model.to(torch.bfloat16).eval()
        examine(model, tokenizer, answers, how["min_probability"])
    out.mkdir(parents=True, exist_ok=True)
    write(model.to(torch.bfloat16), config, tokenizer, out)


def main(argv: list[str]) -> int:
    if len(argv) != 3:
        print(f"usage: {argv[0]} MODEL_DIR OUT_DIR", file=sys.stderr)
        return 2
    try:
        make(Path(argv[1]), Path(argv[2]))
    except Unfit as error:
        print(f"{argv[1]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
