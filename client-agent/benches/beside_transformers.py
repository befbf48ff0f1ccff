"""The engine beside transformers on the same cores: random weights of the SmolLM-135M shape, f32.

    beside_transformers.py MAKE FOLDER              makes the model folder
    beside_transformers.py RUN FOLDER BENCHMARK     runs both in turn and prints one table

BENCHMARK is the executable of `cargo bench -p tributary-agent --bench generation --no-run`. Needs
the packages of `tests/fixtures/language/requirements.txt`. THREADS sets the threads of both.
A cost of adapters is the time of a step with a mixed batch of all-linear rank-8 adapters, dealt out in turn, over that of
a step with the base alone; PEFT's mixed batches are `adapter_names` of `generate`.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
FIXTURE = HERE.parent / "tests/fixtures/language/smollm"
THREADS = int(os.environ.get("THREADS", "1"))
ROUNDS = int(os.environ.get("ROUNDS", "2"))
STEPS = 4


def make(folder):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rope_theta=10000.0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(FIXTURE / "tokenizer.json", folder)


def clock():
    """Processor time of the process with one thread, otherwise wall time: as the benchmark does."""
    return time.process_time() if THREADS == 1 else time.perf_counter()


def with_adapters(folder, count):
    """The model with so many random adapters, named by their numbers."""
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), config, adapter_name="0")
    for number in range(1, count):
        model.add_adapter(str(number), config)
    return model.eval()


def step_seconds(model, batch, adapters=None):
    """Seconds of one decoding step behind prompts of 8 tokens, by the difference of two lengths.

    With a number of adapters, those are dealt out to the rows in turn.
    """
    prompts = torch.tensor([[5 + row] * 8 for row in range(batch)])
    mixed = {"adapter_names": [str(row % adapters) for row in range(batch)]} if adapters else {}

    def run(length):
        start = clock()
        model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, min_new_tokens=length,
            max_new_tokens=length, pad_token_id=0, **mixed,
        )
        return clock() - start

    run(2)
    return (run(2 + STEPS) - run(2)) / STEPS


def first_token_seconds(model, length):
    prompt = torch.arange(5, 5 + length)[None]
    start = clock()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=1, pad_token_id=0)
    return clock() - start


def theirs(model, adapted):
    figures = {}
    with torch.inference_mode():
        for batch in (1, 8, 32):
            base = step_seconds(model, batch)
            figures[f"decode_tokens_per_second_batch_{batch}"] = batch / base
            for count in (8, 32):
                mixed = step_seconds(adapted, batch, count)
                figures[f"decode_cost_of_{count}_adapters_batch_{batch}"] = mixed / base
        for length in (128, 512):
            figures[f"first_token_ms_prompt_{length}"] = first_token_seconds(model, length) * 1e3
    return figures


def ours(folder, benchmark):
    environment = {**os.environ, "TRIBUTARY_BENCH_MODEL": str(folder), "RAYON_NUM_THREADS": str(THREADS)}
    output = subprocess.run([benchmark], env=environment, capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in output.splitlines())
    return {line[0]: float(line[1]) for line in lines if len(line) == 2}


def better(name, left, right):
    return max(left, right) if "per_second" in name else min(left, right)


def run(folder, benchmark):
    torch.set_num_threads(THREADS)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    adapted = with_adapters(folder, 32)
    best = [{}, {}]
    for _ in range(ROUNDS):
        for side, figures in zip(best, (theirs(model, adapted), ours(folder, benchmark))):
            for name, value in figures.items():
                side[name] = better(name, side.get(name, value), value)
    print(f"{THREADS} thread(s), torch {torch.__version__}; best of {ROUNDS} rounds in turn")
    print(f"{'':42} {'transformers':>12} {'ours':>10} {'factor':>7}")
    for name, value in best[1].items():
        other = best[0].get(name)
        if other is None:
            print(f"{name:42} {'':12} {value:10.3f}")
            continue
        factor = value / other if "per_second" in name else other / value
        print(f"{name:42} {other:12.3f} {value:10.3f} {factor:7.2f}")


if __name__ == "__main__":
    if sys.argv[1] == "MAKE":
        make(sys.argv[2])
    else:
        run(sys.argv[2], sys.argv[3])
