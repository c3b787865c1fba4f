#!/usr/bin/env bash
# Makes the environment if need be and the phantom images, then trains, evaluates and applies SCRD, with its defaults but
# for the image size: 128 px are a third of the work of 256. What comes out lies in the folder demo/; arguments go to the training, for instance --max_epochs 5.
source "$(dirname "$0")/_env.sh"
out=demo
configs=bundles/scrd/configs
begin=$SECONDS

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - begin)); }
bundle() {
    echo "python -m monai.bundle run $*"
    python -m monai.bundle run "$@"
}

step "phantoms: made once, then found in the cache"
data=$(python -c 'from monai_rdad.data import phantom_dataset; print(phantom_dataset())')
volume=$(find "$data/volumes" -name 'lesion*.nii.gz' | sort | head -n 1)
echo "$data"

step "training on normal images"
bundle training --config_file $configs/train.yaml --image_size 128 --ckpt_dir $out/models \
    --output_dir $out/evaluation "$@"

step "evaluating on the test split"
bundle evaluating --config_file "['$configs/train.yaml','$configs/evaluate.yaml']" \
    --ckpt_dir $out/models --output_dir $out/evaluation

step "inference on a folder of pictures"
bundle inference --config_file $configs/inference.yaml --ckpt_dir $out/models \
    --input "$data/testing" --output_dir $out/pictures

step "inference on a volume"
bundle inference --config_file $configs/inference.yaml --ckpt_dir $out/models \
    --input "$volume" --output_dir $out/volume

step "done"
python - $out/evaluation/metrics.json <<'EOF'
import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    metrics = json.load(file)
for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro_0.3"):
    low, high = metrics[f"{name}_ci_low"], metrics[f"{name}_ci_high"]
    print(f"{name:<12} {metrics[name]:.3f}  (95 % interval {low:.3f} to {high:.3f})")
EOF
cat <<EOF

report            $out/evaluation/report.html
scores and maps   $out/pictures/, $out/volume/
runs in MLflow    mlflow ui --backend-store-uri sqlite:///$out/evaluation/mlruns.db
EOF
