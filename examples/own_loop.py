"""Train a fingerprint network in your own Accelerate loop.

python examples/own_loop.py DATASET MODEL
ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/own_loop.py DATASET MODEL --batch-size 32

DATASET is a dataset folder. MODEL is the folder to write; `FingerprintExtractor.from_pretrained` opens it.
"""

import argparse
from itertools import islice

import torch
from accelerate import Accelerator

import fingerprint_accel as fp
from fingerprint_accel.config import ModelConfig

parser = argparse.ArgumentParser()
parser.add_argument("dataset")
parser.add_argument("model")
parser.add_argument("--batch-size", type=int, default=64)  # of each process
parser.add_argument("--steps", type=int, default=1000)
args = parser.parse_args()

accelerator = Accelerator()
rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
torch.manual_seed(0)

config = fp.Config(model=ModelConfig(variant="TexMinu", trunk="compact", norm="group", dropout=0.0))
data = fp.open_dataset(args.dataset)
loader = fp.training_loader(data, args.batch_size, rank=rank, processes=processes, device=device)
preprocessor = fp.Preprocessor(config.preprocess, data.info.canvas, ppi=data.info.ppi).to(device)
model = fp.DeepPrint(config.model)
criterion = fp.DeepPrintLoss(config.loss, model, num_fingers=data.info.fingers)
optimizer = torch.optim.AdamW([*model.parameters(), *criterion.parameters()], lr=3e-4)
model, criterion, optimizer = accelerator.prepare(model, criterion, optimizer)

with loader:
    for step, batch in enumerate(islice(loader, args.steps), 1):
        images, maps = preprocessor(batch, augment=True, maps=True)
        output = model(images)
        loss = criterion(output, batch.finger, maps, batch.minutia_count > 0).total
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.unwrap_model(criterion).update_centers(output.branches, batch.finger)
        mean = accelerator.reduce(loss.detach(), reduction="mean")
        accelerator.print(f"step {step}: loss {mean.item():.6f}")

if accelerator.is_main_process:
    info = data.info
    extractor = fp.FingerprintExtractor(config.model, config.preprocess, info.ppi, info.canvas, info.enhanced)
    extractor.model.load_state_dict(accelerator.unwrap_model(model).state_dict())
    extractor.save_pretrained(args.model)
accelerator.end_training()
