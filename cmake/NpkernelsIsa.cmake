# npkernels_isa(<target> <isa> <flags...>)
#
# Compiles every file of csrc/kernels once more, for one instruction set, in the namespace of its name, and adds the objects
# to <target>. The files are the same for all; -DNPK_ISA and the flags are the only difference. An ISA that
# NPKERNELS_UNUSED_ISAS names is compiled in the shortest time.
function(npkernels_isa target isa)
  add_library(npkernels_${isa} OBJECT ${NPKERNELS_KERNEL_SOURCES})
  target_include_directories(npkernels_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/csrc/include)
  target_compile_definitions(npkernels_${isa} PRIVATE NPK_ISA=${isa})
  target_compile_options(npkernels_${isa} PRIVATE ${NPKERNELS_CXX_FLAGS} ${ARGN})
  if(isa IN_LIST NPKERNELS_UNUSED_ISAS)
    target_compile_options(npkernels_${isa} PRIVATE -O0 -fno-sanitize=all)
  endif()
  set_target_properties(npkernels_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:npkernels_${isa}>)
endfunction()
