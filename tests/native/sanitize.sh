#!/bin/sh
# Builds the C++ tests with sanitizers and runs them: AddressSanitizer with UndefinedBehaviorSanitizer, then
# ThreadSanitizer.  The argument is the folder with cmake and ninja.
#
# The door is left out of the second: gRPC comes from the distribution and is not instrumented, so ThreadSanitizer cannot
# see how it hands a call from one thread to the next, and would report every message.
set -eu
tools=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."

build() { # name of the folder, sanitizers
  "$tools/cmake" -S native -B "build/cpp-$1" -G Ninja "-DCMAKE_MAKE_PROGRAM=$tools/ninja" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DHEADRACE_MODULE=OFF -DHEADRACE_TESTS=ON -DHEADRACE_CUDA=OFF "-DHEADRACE_SANITIZE=$2" >/dev/null
  "$tools/cmake" --build "build/cpp-$1" --parallel 2
}

run() { # name of the folder, parts
  folder=$1
  shift
  for part in "$@"; do
    program="build/cpp-$folder/tests/headrace_tests_$part"
    [ ! -x "$program" ] || { echo "== $folder: $part" && "$program"; }
  done
}

HEADRACE_ONNXRUNTIME=$("$tools/python" -c "from headrace_server.kernels.onnx_programs import library; print(library()[0])")
export HEADRACE_ONNXRUNTIME

build address address,undefined
export UBSAN_OPTIONS=print_stacktrace=1
run address batching programs plane door

build thread thread
export TSAN_OPTIONS=halt_on_error=1
run thread batching programs plane
