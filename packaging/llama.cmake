# Of llama.cpp only the libraries, not what its programs share: half of what would be compiled. `make install` gives this
# file to the build of llama-cpp-python as CMAKE_PROJECT_llama.cpp_INCLUDE; it cannot be said by an option there.
set(LLAMA_BUILD_COMMON OFF)
