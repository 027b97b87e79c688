#!/bin/sh
# What one GPU shows within eight minutes: its name, the guarantees on it, speeds beside a bare loop, and short runs.
#
#     sh benchmarks/gpu.sh              # on a GPU
#     sh benchmarks/gpu.sh --small      # tries the script itself, on a CPU
#
# Prints one table at the end. Everything that was printed is in $OUT (default: /tmp/mmssl-gpu). PYTHON: default python.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python} OUT=${OUT:-/tmp/mmssl-gpu}
export PYTHONPATH=.:tests MMSSL_HOME="$OUT/home" OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
mkdir -p "$OUT" && : > "$OUT/table.txt"
row() { printf '%-34s %6s s  %s\n' "$1" "$2" "$3" | tee -a "$OUT/table.txt"; }

if [ "$1" = --small ]; then
    device=cpu chosen="test_every_method.py -k simclr" benchmark="--cases mae --small --use_cpu --steps 2 --turns 1" flags=--use_cpu
    unset MMSSL_TEST_DEVICE
else
    device=cuda benchmark="--cases clip modernbert mae --steps 6 --turns 2" flags="--bf16 yes"
    chosen="test_steps.py test_loop.py test_every_method.py -k not(compile)and(resume|processes|micro_batches|gradient|steps|export|resumed|players)"
    export MMSSL_TEST_DEVICE=cuda
fi

row "$($PYTHON -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")')" 0 \
    "torch $($PYTHON -c 'import torch; print(torch.__version__, "CUDA", torch.version.cuda)')"

# timed NAME SECONDS PATTERN COMMAND...: its last line of output that matches; what it printed is in $OUT/NAME.log
timed() {
    name=$1 limit=$2 pattern=$3; shift 3
    began=$(date +%s)
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
    code=$?
    said=$(grep -E "$pattern" "$OUT/$name.log" | tail -1 | cut -c1-200)
    [ $code -eq 124 ] && said="stopped after $limit s; $said"
    [ $code -ne 0 ] && [ -z "$said" ] && said="exit code $code: $(tail -1 "$OUT/$name.log" | cut -c1-150)"
    row "$name" $(($(date +%s) - began)) "$said"
}

expression=${chosen#* -k } files=${chosen% -k *}
set --
for file in $files; do set -- "$@" "tests/$file"; done
expression=$(echo "$expression" | sed 's/|/ or /g; s/)and(/) and (/; s/not(/not (/')
timed guarantees 200 'passed|failed|error' $PYTHON -m pytest -q -p no:cacheprovider -n 4 --dist load "$@" -k "$expression" \
    --junitxml "$OUT/guarantees.xml"
grep -E '^FAILED|^ERROR' "$OUT/guarantees.log" | cut -c1-160 | sed 's/^/    /' | tee -a "$OUT/table.txt"
timed speed 140 'ours' $PYTHON benchmarks/gpu.py $benchmark
grep ours "$OUT/speed.log" | sed 's/^/    /' | cut -c1-200 >> "$OUT/table.txt"
short="--max_steps 20 --save_steps 10 --logging_steps 10 --overwrite_output_dir $flags"
for recipe in simclr clip bert; do
    timed "run-$recipe" 60 'steps|loss' $PYTHON "recipes/$recipe.py" $short --output_dir "$OUT/runs/$recipe"
done
# the same run from its middle: with deterministic kernels, the weights must have the same bits
exact="--max_steps 20 --save_steps 10 --save_total_limit 5 --full_determinism True --overwrite_output_dir $flags"
timed whole 60 'steps|loss' $PYTHON recipes/simclr.py $exact --output_dir "$OUT/runs/whole"
timed resumed 60 'steps|loss' $PYTHON recipes/simclr.py $exact --output_dir "$OUT/runs/resumed" \
    --resume_from_checkpoint "$OUT/runs/whole/checkpoints/step_00000010"
last=checkpoints/step_00000020/method.safetensors
cmp -s "$OUT/runs/whole/$last" "$OUT/runs/resumed/$last" && same="equal to the bit" || same="DIFFERENT"
row "resume against never stopped" 0 "$same"
echo; cat "$OUT/table.txt"
