#!/bin/sh
# What one GPU shows within eight minutes: its name, the guarantees on it, speeds beside a bare loop, and short runs.
#
#     sh benchmarks/gpu.sh              # on a GPU
#     sh benchmarks/gpu.sh --small      # tries the script itself, on a CPU
#
# Prints one table at the end. All output is in $OUT (default: /tmp/mmssl-gpu). PYTHON: the interpreter.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python} OUT=${OUT:-/tmp/mmssl-gpu}
export PYTHONPATH=.:tests MMSSL_HOME="$OUT/home" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
mkdir -p "$OUT" && : > "$OUT/table.txt"

files="tests/test_steps.py tests/test_loop.py tests/test_every_method.py tests/test_export.py"
tests="resume or resumed or processes or micro_batches or gradient or players or accumulat or export"
speed="--cases clip modernbert mae --steps 6 --turns 2"
flags="--bf16 yes" patience=1
export MMSSL_TEST_DEVICE=cuda
if [ "$1" = --small ]; then
    files=tests/test_every_method.py tests="simclr and (resume or processes)"
    speed="--cases mae --small --use_cpu --steps 2 --turns 1 --batch_size 32"
    flags="--use_cpu --bf16 no --per_device_train_batch_size 16"
    MMSSL_TEST_DEVICE=cpu patience=4
    export TORCHDYNAMO_DISABLE=1  # the C++ compiler takes minutes
fi

row() { printf '%-28s %4s s  %s\n' "$1" "$2" "$3" | tee -a "$OUT/table.txt"; }

# timed NAME LIMIT PATTERN COMMAND...: a row with the last line that matches. Interrupted, not killed, at its limit, so
# that pytest still counts; what it printed is in $OUT/NAME.log
timed() {
    name=$1 limit=$2 pattern=$3
    shift 3
    began=$(date +%s)
    timeout -s INT -k 20 $((patience * limit)) "$@" > "$OUT/$name.log" 2>&1
    code=$?
    said=$(tr '\r' '\n' < "$OUT/$name.log" | grep -E "$pattern" | tail -1 | cut -c1-150)
    [ "$code" -eq 0 ] || said="exit code $code$([ "$code" -eq 124 ] && echo " (stopped)"): ${said:-$(tail -1 "$OUT/$name.log" | cut -c1-150)}"
    row "$name" $(($(date +%s) - began)) "$said"
}

about='import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU", "torch", torch.__version__)'
row "$($PYTHON -c "$about")" 0 ""
parallel=
[ "$1" != --small ] && $PYTHON -c "import xdist" 2> /dev/null && parallel="-n 6 --dist loadfile"
timed guarantees 190 ' (passed|failed|error)' $PYTHON -m pytest -p no:cacheprovider $parallel $files -k "$tests" \
    --junitxml "$OUT/guarantees.xml"
grep -E '^(FAILED|ERROR)' "$OUT/guarantees.log" | cut -c1-150 | sed 's/^/    /' | tee -a "$OUT/table.txt"
timed speed 150 ours $PYTHON benchmarks/gpu.py $speed
grep -E 'ours|failed' "$OUT/speed.log" | cut -c1-200 | sed 's/^/    /' | tee -a "$OUT/table.txt"
for recipe in clip bert; do
    timed "$recipe" 35 'loss|steps' $PYTHON "recipes/$recipe.py" --max_steps 20 --save_steps 0 --logging_steps 10 \
        --overwrite_output_dir --output_dir "$OUT/runs/$recipe" $flags
done
# a run, and the same from its middle: with deterministic kernels its weights must have the same bits
exact="--max_steps 20 --save_steps 10 --logging_steps 10 --full_determinism True --overwrite_output_dir $flags"
timed whole 30 'loss|steps' $PYTHON recipes/simclr.py $exact --output_dir "$OUT/runs/whole"
timed resumed 30 'loss|steps' $PYTHON recipes/simclr.py $exact --output_dir "$OUT/runs/resumed" \
    --resume_from_checkpoint "$OUT/runs/whole/checkpoints/step_00000010"
last=checkpoints/step_00000020/method.safetensors
same="weights that differ"
cmp -s "$OUT/runs/whole/$last" "$OUT/runs/resumed/$last" && same="equal to the bit"
row "resumed, never stopped" 0 "$same"
printf '\n' && cat "$OUT/table.txt"
