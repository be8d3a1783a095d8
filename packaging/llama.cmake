# `make install` gives this file to the build of llama-cpp-python as CMAKE_PROJECT_llama.cpp_INCLUDE. Of llama.cpp only
# the libraries are built, not what its programs share: half of what would be compiled.
set(LLAMA_BUILD_COMMON OFF)

# Its headers cost more than its code: compiled in large pieces, it takes half of the time. llama.cpp does this itself
# for its models; whether the rest compiles so was tried with the versions named here alone.
function(edgetune_compile_in_pieces)
  get_target_property(sources llama SOURCES)
  list(FILTER sources INCLUDE REGEX "^(llama|unicode).*[.]cpp$")
  get_target_property(folder llama SOURCE_DIR)
  list(TRANSFORM sources PREPEND "${folder}/")
  set_source_files_properties(${sources} DIRECTORY ${folder} PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)
endfunction()
if(SKBUILD_PROJECT_VERSION VERSION_EQUAL 0.3.36 AND NOT CMAKE_VERSION VERSION_LESS 3.19)
  cmake_language(DEFER CALL edgetune_compile_in_pieces)
endif()
