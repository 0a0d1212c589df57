#!/bin/sh
# Looks for calls of the core that break it: libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/native/fuzz/run.sh SECONDS    CXX: a clang++ with libFuzzer and OpenMP; FUZZ: options of libFuzzer;
#                                       PYTHON: the environment's interpreter
#   tests/native/fuzz/run.sh merge      keeps what reaches other code, as the corpus that the tests repeat
#
# It begins with that corpus. What it finds, and calls that reach more code, are in build/fuzz.
set -eu
cd "$(dirname "$0")/../../.."
build=build/fuzz
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
bin=$(dirname "$python")
mkdir -p $build/corpus
if [ -e tests/native/fuzz/corpus.bin ]; then "$python" tests/native/fuzz/corpus.py unpack $build/corpus; fi
flags="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all"
CC=${CC:-clang-19} CXX=${CXX:-clang++-19} "$bin/cmake" -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=None \
  -DCMAKE_CXX_FLAGS="$flags" -DALIGNMASK_FUZZ=ON -DALIGNMASK_CUDA=OFF -DPython_EXECUTABLE="$python" \
  -DCMAKE_MAKE_PROGRAM="$bin/ninja" > $build/cmake.log || { cat $build/cmake.log; exit 1; }
"$bin/cmake" --build $build --target fuzz_core
fuzzer=$build/tests/native/fuzz/fuzz_core
export UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2
if [ "$1" = merge ]; then
  rm -rf $build/smallest
  mkdir $build/smallest
  $fuzzer -merge=1 -use_counters=0 -use_value_profile=0 $build/smallest $build/corpus
  "$python" tests/native/fuzz/corpus.py pack $build/smallest
else
  $fuzzer -max_total_time="$1" -max_len=400 -artifact_prefix=$build/ -print_final_stats=1 ${FUZZ:-} $build/corpus
fi
