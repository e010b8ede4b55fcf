#!/usr/bin/env bash
# Puts ik_llama.cpp, built for this host, into a virtual environment: a peer of benchmarks/llm.py.
#
#     benchmarks/install_ik_llama.sh .venv-bench
#
# The wheel on PyPI has code for AVX2 alone, so its two libraries are built anew from the source
# distribution, which lacks a file that CMake asks for: the one that writes build-info.cpp.
set -euo pipefail

bin=$1/bin
package=ik-llama-cpp-python==0.1.5
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$bin/python" -m pip install --quiet "$package" cmake ninja
"$bin/python" -m pip download --quiet --no-deps --no-binary ik-llama-cpp-python \
    --dest "$folder" "$package"
tar -xzf "$folder"/*.tar.gz -C "$folder" --strip-components=1

common=$folder/vendor/ik_llama.cpp/common
mkdir -p "$common/cmake"
echo "file(WRITE \"$common/build-info.cpp\" \"\")" >"$common/cmake/build-info-gen-cpp.cmake"
"$bin/cmake" -S "$folder" -B "$folder/build" -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath "$bin")/ninja" \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON '-DCMAKE_INSTALL_RPATH=$ORIGIN' >"$folder/configure.log"
"$bin/cmake" --build "$folder/build" --target llama >"$folder/build.log"
lib=$("$bin/python" -c \
    'import importlib.util as u; print(u.find_spec("ik_llama_cpp").submodule_search_locations[0])')/lib
find "$folder/build" -name 'libllama.so' -exec cp {} "$lib" \; -o -name 'libggml.so' -exec cp {} "$lib" \;
