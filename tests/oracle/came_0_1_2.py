"""came-pytorch 0.1.2 on given weights and gradients. In `.venv-oracle`: `came_0_1_2.py FOLDER`."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from came_pytorch import CAME
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    question = json.loads((folder / "question.json").read_text())
    tensors = load_file(folder / "question.safetensors")
    params = [torch.nn.Parameter(tensors[f"weight{i}"]) for i in range(question["weights"])]
    optimizer = CAME(params, lr=question["lr"])
    for step in range(question["steps"]):
        for i, p in enumerate(params):
            p.grad = tensors[f"gradient{i}"][step].clone()
        optimizer.step()
    save_file(
        {f"weight{i}": p.detach() for i, p in enumerate(params)}, folder / "answer.safetensors"
    )
    (folder / "answer.json").write_text(json.dumps({"version": version("came-pytorch")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
