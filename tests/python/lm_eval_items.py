"""Compares kbit's tasks with lm-evaluation-harness's, item for item.

lm_eval_items.py KBIT TASKS DATA MODEL... [--limit N] [--few-shot K] [--only TASK,TASK] [--golden OUT.json]

KBIT is the program, TASKS the folder configs/tasks. DATA is a folder with JSONL files: one named as the task (`arc.jsonl`), or a
folder of that name with several; `NAMES` lists other names that the data are known by. A MODEL is a Hugging Face folder or a GGUF
file, which transformers decodes. Both programs compute in f32 on the CPU. lm-evaluation-harness runs its own task definitions, with
nothing changed but where the data come from.

One line a model and task: documents, documents where the likeliest choice, acc or acc_norm (a cloze: the greedy match) differ, and the
largest difference of a log-likelihood. `--golden` writes the harness's items; tests/data/lm_eval_items.json are those of assets/tasks
on assets/family/s1, and `tests/tests/tasks.rs` holds kbit to them. The status is 1 where an item differs. Needs the PyPI packages lm-eval, torch, transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

SCRATCH = Path(tempfile.mkdtemp(prefix="lm-eval-items-"))
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(SCRATCH / "hf"), TOKENIZERS_PARALLELISM="false")

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

# The harness's definition, and what its data have that ours may lack.
TASKS = {
    "arc": "arc/arc_easy.yaml",
    "blimp": "blimp/_template_yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "winogrande": "winogrande/default.yaml",
}
NAMES = {"arc": ["arc_easy", "arc_challenge"], "lambada": ["lambada_openai"], "mmlu": ["mmlu_dev"]}


def complete(document):
    """The document with the fields that the harness's data have, where they are there under other names."""
    if "continuation" in document and "context" in document:
        document.setdefault("text", document["context"] + " " + document["continuation"])
    if "passage" in document and "answer" in document:
        document.setdefault("label", int(document["answer"]))
    return document


def documents(folder, task):
    """The JSONL files of a task."""
    for name in [task, *NAMES.get(task, [])]:
        if (folder / f"{name}.jsonl").is_file():
            return [folder / f"{name}.jsonl"]
        if (folder / name).is_dir():
            return sorted((folder / name).glob("*.jsonl"))
    return []


def prepared(path, limit):
    """The first documents of `path` with all fields, as a file that both programs read."""
    out = SCRATCH / path.parent.name / path.name
    out.parent.mkdir(exist_ok=True)
    with open(path, encoding="utf-8") as lines:
        found = [complete(json.loads(line)) for line in lines if line.strip()][:limit]
    out.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in found), encoding="utf-8")
    return out


def harness_task(task, data):
    """The harness's definition of `task` over the file `data`."""
    root = Path(lm_eval.__file__).parent / "tasks"
    config = load_yaml(root / TASKS[task], resolve_func=True)
    for key in ["tag", "group", "dataset_name", "training_split", "validation_split", "fewshot_split", "should_decontaminate",
                "doc_to_decontamination_query", "num_fewshot"]:
        # With `num_fewshot: 0` in a definition, the harness takes no number of examples from outside.
        config.pop(key, None)
    config.update(task=f"{task}_{data.stem}", dataset_path="json", test_split="test", fewshot_split="test")
    config["dataset_kwargs"] = {"data_files": {"test": str(data)}}
    if task == "mmlu":
        # The subjects' definitions add this line; it is the same for all but the subject.
        config["description"] = "{% if subject is defined %}The following are multiple choice questions (with answers) about " \
            "{{ subject.replace('_', ' ') }}.\n\n{% endif %}"
    if task == "truthfulqa_mc1":
        # The six questions before each are the benchmark's own text.
        config["doc_to_text"] = "Q: {{ question }}\nA:"
    return config


# Without its own index of thousands of definitions, which is read anew for each task otherwise.
MANAGER = TaskManager(include_defaults=False)


def harness_items(model, config, few_shot):
    found = lm_eval.simple_evaluate(
        model=model, tasks=[config], task_manager=MANAGER, num_fewshot=few_shot, bootstrap_iters=0, log_samples=True
    )
    samples = sorted(found["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    items = []
    for sample in samples:
        answers = [response[0] if isinstance(response[0], (tuple, list)) else response for response in sample["resps"]]
        item = {"log_likelihoods": [float(answer[0]) for answer in answers], "greedy": [bool(answer[1]) for answer in answers]}
        item.update({name: float(sample[name]) for name in ("acc", "acc_norm") if name in sample})
        items.append(item)
    return items


def kbit_items(kbit, model, task, data, few_shot):
    out = SCRATCH / "items.jsonl"
    command = [kbit, "eval", str(model), "--metric", "task", "--task", str(task), "--data", str(data), "--items", str(out)]
    command += ["--few-shot", str(few_shot), "--mode", "f32", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return [json.loads(line) for line in out.read_text().splitlines()], json.loads(done.stdout)


def best(values):
    return max(range(len(values)), key=lambda place: values[place])


def compare(ours, theirs):
    """Of two items: whether anything that is counted differs, and by how much the log-likelihoods do."""
    a, b = ours["log_likelihoods"], theirs["log_likelihoods"]
    if len(a) != len(b):
        return True, float("inf")
    differs = best(a) != best(b) or ours["greedy"] != theirs["greedy"]
    if "gold" in ours and "acc" in theirs:
        differs |= (ours["predicted"] in ours["gold"]) != bool(theirs["acc"])
    return differs, max(abs(x - y) for x, y in zip(a, b))


def load(path):
    if path.is_dir():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kbit")
    parser.add_argument("tasks", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--few-shot", type=int, default=0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--golden", type=Path)
    arguments = parser.parse_args()
    rows, golden = [], {}
    for path in arguments.models:
        network, tokenizer = load(path)
        model = HFLM(pretrained=network.eval(), tokenizer=tokenizer, device="cpu", batch_size=1, dtype="float32")
        for task in arguments.only:
            for source in documents(arguments.data, task):
                data = prepared(source, arguments.limit)
                theirs = harness_items(model, harness_task(task, data), arguments.few_shot)
                ours, document = kbit_items(arguments.kbit, path, arguments.tasks / f"{task}.yaml", data, arguments.few_shot)
                if len(ours) != len(theirs):
                    sys.exit(f"{task}: {len(ours)} items, the harness has {len(theirs)}")
                compared = [compare(a, b) for a, b in zip(ours, theirs)]
                differ = sum(differs for differs, _ in compared)
                means = {metric["metric"]: metric["value"] for metric in document["metrics"]}
                for name in ("acc", "acc_norm"):
                    if name in means and name in theirs[0]:
                        mean = sum(item[name] for item in theirs) / len(theirs)
                        differ += abs(mean - means[name]) > 1e-9
                row = {"model": path.stem, "task": task, "data": source.stem, "documents": len(ours), "differ": differ,
                       "largest": max(difference for _, difference in compared), **means}
                rows.append(row)
                golden.setdefault(path.stem, {})[task] = theirs
                print(f"{row['model']:12} {task:14} {source.stem:42} {len(ours):5} documents {differ:3} differ, "
                      f"log-likelihoods by {row['largest']:.2e}", flush=True)
    if arguments.golden:
        versions = {name: version(name) for name in ("lm-eval", "torch", "transformers")}
        lines = [f' "versions": {json.dumps(versions)}']
        for model, tasks in golden.items():
            items = ",\n".join(f'  "{task}": {json.dumps(found)}' for task, found in tasks.items())
            lines.append(f' "{model}": {{\n{items}\n }}')
        arguments.golden.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.exit(any(row["differ"] for row in rows))


main()
