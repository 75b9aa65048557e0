#!/usr/bin/env bash
# All that only a machine with an NVIDIA GPU can check, what tells most first: kernels and executor against references, figures, sanitizers.
# Every step has a limit of time and its result is kept, so that a rented machine may be taken away in between.
#
#   bench/gpu.sh [-o FOLDER] [-t SECONDS] [-w WHEELS] [STEP...]
#   bench/gpu.sh -d WHEELS [-- PIP OPTIONS]
#
#   -o  for log, summary and results; build/gpu/results by default
#   -t  no step goes on longer than this after the start
#   -w  folder of wheels, on a machine without a network
#   -d  only fills that folder, on a machine that has one, with what is not to be built: for another Python by options of `pip download`
#   STEP  only these: build cpp check kernels stream profile figures run memcheck racecheck probes
#
# Needs nvcc, cmake, a C++ compiler and python3 of 3.11 or later; GoogleTest and compute-sanitizer where they are. Ends with 1 if a step failed.
set -uo pipefail
cd "$(dirname "$0")/.."

results=build/gpu/results
budget=3600
wheels=
download=
while getopts o:t:w:d: option; do
  case $option in
    o) results=$OPTARG ;;
    t) budget=$OPTARG ;;
    w) wheels=$OPTARG ;;
    d) download=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))

needed=(scikit-build-core pybind11 pytest pytest-benchmark hypothesis nvidia-ml-py)
if [ -n "$download" ]; then
  mapfile -t dependencies < <(python3 -c '
import tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))')
  python3 -m pip download --only-binary=:all: -d "$download" "$@" "${needed[@]}" "${dependencies[@]}"
  exit
fi
wanted=" $* "
work=$PWD/build/gpu
mkdir -p "$work" "$results"
results=$(cd "$results" && pwd)
bin=$work/venv/bin
tests=$work/build/tests/cpp/pshard_tests
log=$results/log.txt
failed=0

say() { printf '%s\n' "$*" | tee -a "$results/summary.txt"; }

# step LIMIT NAME COMMAND...: at most LIMIT seconds of what is left.
step() {
  local limit=$1 name=$2 start=$SECONDS status
  shift 2
  [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
  [ $((budget - SECONDS)) -ge "$limit" ] || limit=$((budget - SECONDS))
  if [ "$limit" -lt 5 ]; then
    say "$name: left out, the time is over"
    failed=1
    return 0
  fi
  printf '\n== %s\n' "$name" >>"$log"
  timeout -k 5 "$limit" bash -c "$*" >>"$log" 2>&1
  status=$?
  case $status in
    0) say "$name: done in $((SECONDS - start)) s$(tail -n 1 "$log" | sed '/^== /d; s/^/: /')" ;;
    3) say "$name: left out, $(tail -n 1 "$log")" ;;
    124 | 137) say "$name: stopped after $limit s" && failed=1 ;;
    *) say "$name: FAILED with $status after $((SECONDS - start)) s" && tail -n 25 "$log" && failed=1 ;;
  esac
}

pip_options=
[ -z "$wheels" ] || pip_options="--no-index --find-links '$(cd "$wheels" && pwd)'"
# One build makes the package and, where there is GoogleTest, the C++ tests.
has_gtest=$(echo '#include <gtest/gtest.h>' | c++ ${GTEST_ROOT:+-I"$GTEST_ROOT/include"} -E -x c++ - >/dev/null 2>&1 && echo ON || echo OFF)
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
build="
  set -e
  pip() { if '$bin/python' -m pip --version >/dev/null 2>&1; then '$bin/python' -m pip \"\$@\"; else python3 -m pip --python '$bin/python' \"\$@\"; fi; }
  nvidia-smi || true
  nvcc --version | tail -n 2
  [ -x '$bin/python' ] || python3 -m venv '$work/venv' || python3 -m venv --clear --without-pip '$work/venv'
  pip install -q $pip_options ${needed[*]}
  pip install -q $pip_options --no-build-isolation . -C build-dir='$work/build' -C cmake.define.PSHARD_CUDA=ON \
    -C cmake.define.PSHARD_TESTS=$has_gtest -C cmake.define.CMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF
  '$bin/python' -c 'from pshard import _core; print(_core.query_gpus().reason, end=\"\")' >'$work/no_gpu'"

# What needs a GPU, or the C++ tests, says so with 3.
with_gpu() { printf "[ ! -s '%s' ] || { echo no GPU: \$(cat '%s'); exit 3; }; %s" "$work/no_gpu" "$work/no_gpu" "$1"; }
with_tests() { printf "[ -x '%s' ] || { echo 'there is no GoogleTest'; exit 3; }; %s" "$tests" "$1"; }
# TOOL FILTER: of the C++ tests those that are fit for a sanitizer, which makes kernels 10 to 1000 times as long.
sanitized() {
  with_tests "command -v compute-sanitizer || { echo 'there is no compute-sanitizer'; exit 3; }
    compute-sanitizer --tool $1 --report-api-errors no --error-exitcode 9 '$tests' --gtest_filter='$2'"
}
pytest="'$bin/python' -m pytest -q -p no:cacheprovider"
pshard="XDG_DATA_HOME='$work/data' '$bin/pshard'"

profile=$results/profile.json
measured="\$([ ! -e '$profile' ] || echo --machine '$profile')"

step 300 build "$build"
step 120 cpp "$(with_tests "'$tests' --gtest_filter='*Cuda*:Devices*'")"
step 120 check "$pshard run llama-3.2-1b:Q4_K_M --vram 700M --prompt 600 --generate 8 --passes 1 --check --json >'$results/checked.json'"
step 150 kernels "$pytest tests/python/test_gpu_probes.py -k 'not every_probe'"
step 150 stream "$pytest bench/bench_gpu_stream.py --benchmark-json='$results/stream.json'"
step 120 profile "$pshard profile -o '$profile' && $pshard profile show '$profile'"
step 180 figures "$(with_gpu "'$bin/python' bench/bench_gpu.py '$results'")"
step 120 run "$(with_gpu "$pshard run llama-3.1-8b:Q4_K_M --vram 3G --prompt 2048 --generate 64 --passes 3 $measured --json --trace '$results/trace.json' >'$results/run.json'")"
step 150 memcheck "$(sanitized memcheck 'CudaKernels*:*CudaBackend*')"
# It follows every thread's every access to shared memory, so it is given parts, each with a limit of its own. Counted in the code, kernels
# at their least shapes make 2 million of each type and 7 million in attention, in 60 launches of each; the backend's tests 110 million in
# 4,000. What these add, kernels beside copies and waits, takes one case of many rows, whose tiles and tiles of attention are 11 million in
# 220, and one of single rows and drawn experts.
for part in 'CudaKernels.MultiplyEveryType' 'CudaKernels.MultiplyExperts*' 'CudaKernels.*-CudaKernels.Multiply*' \
  '*/dense_40_tokens_half_locked:*/experts_1_tokens_half_locked'; do
  step 120 racecheck "$(sanitized racecheck "$part")"
done
step 300 probes "$pytest tests/python/test_gpu_probes.py -k every_probe"
exit $failed
