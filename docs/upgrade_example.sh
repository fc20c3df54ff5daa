#!/usr/bin/env bash
# The worked example of docs/upgrade_your_gallery.md, offline: `make upgrade-example`, or with PYTHON=... from here.
# It makes what is missing: the rendered data set and the quickstart's two models (about 2 minutes on two idle cores).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

say() { echo; echo "\$ $*"; }
run() { say "python $*"; "$python" "$@"; }

[ -e data_store/glyphs ] || run prepare_dataset.py --dataset glyphs
for model in old new; do
  [ -e checkpoints/glyphs_$model.pt ] || run train_backbone.py --config configs/glyphs_backbone_$model.yaml
  for split in training validation; do
    file=embeddings/glyphs_${model}_$split.npz
    [ -e $file ] || run embed.py --config configs/glyphs_embed.yaml model_path=checkpoints/glyphs_$model.pt split=$split output_embeddings_path=$file
  done
done

run fit_embeddings.py --config configs/fit_embeddings.yaml \
  old=embeddings/glyphs_old_training.npz new=embeddings/glyphs_new_training.npz method=fastfill inner_dim=512 epochs=10 \
  objective_params.discriminative_loss.mu_disc=1 objective_params.uncertainty_loss.mu_uncertainty=0.5 \
  output=checkpoints/glyphs_embeddings_transformation.pt

upgrade() { run upgrade_gallery.py "$1" --config configs/glyphs_upgrade.yaml "${@:2}"; }
evaluate() {
  run eval.py --config configs/cifar100_files_eval.yaml embeddings_params.query=embeddings/glyphs_new_validation.npz embeddings_params.gallery=upgraded/glyphs.lance
}

upgrade transform
upgrade plan
evaluate

say "two batches of 500 items each, as the order says, one of them a second time"
for batch in 1 2; do
  upgrade export --next upgraded/next.npy --limit 500
  "$python" - $batch <<'PYTHON'
import sys

import numpy as np

ids = np.load("upgraded/next.npy")  # the new model would embed these items now
new = np.load("embeddings/glyphs_new_validation.npz")
rows = {item: row for row, item in enumerate(new["ids"])}
np.savez(f"upgraded/batch_{sys.argv[1]}.npz", ids=ids, embeddings=new["embeddings"][[rows[item] for item in ids]])
PYTHON
  upgrade apply --batch upgraded/batch_$batch.npz
done
upgrade apply --batch upgraded/batch_1.npz
upgrade status --verify
evaluate

# A transformation that is fitted to the 1,000 pairs of the batches too, and the rest of the gallery by that.
upgrade export --pairs upgraded/pairs
say "the sample of the first fit, with these pairs behind it"
"$python" - <<'PYTHON'
import numpy as np

for role in ("old", "new"):
    files = [np.load(f"embeddings/glyphs_{role}_training.npz"), np.load(f"upgraded/pairs_{role}.npz")]
    arrays = {name: np.concatenate([file[name] for file in files]) for name in ("embeddings", "labels")}
    np.savez(f"upgraded/all_{role}.npz", **arrays)
PYTHON
run fit_embeddings.py --config configs/fit_embeddings.yaml \
  old=upgraded/all_old.npz new=upgraded/all_new.npz method=fastfill inner_dim=512 epochs=10 \
  objective_params.discriminative_loss.mu_disc=1 objective_params.uncertainty_loss.mu_uncertainty=0.5 \
  output=checkpoints/glyphs_embeddings_transformation_2.pt
upgrade transform transformation_path=checkpoints/glyphs_embeddings_transformation_2.pt
evaluate

upgrade rollback --to 1
upgrade rollback
upgrade status --verify
upgrade export --to upgraded/glyphs.faiss
