# shellcheck shell=sh
# The environment for oneAPI's runtime, to be sourced: '. /opt/intel/oneapi/setvars.sh', in sh and bash.
#
# The runtime is in wheels, all in the one prefix of Python's environment; so what Intel's own script
# gathers from a directory for each component is a single directory here. Left out is what only a
# compiler reads. Sourced again, it changes nothing; with '--force' (bash) it sets all of it again.

_setvars() {
  _setvars_prefix=/opt/venvs/orchestrate
  if [ "${SETVARS_COMPLETED:-}" = 1 ] && [ "${1:-}" != --force ]; then
    return 0
  fi
  if [ ! -e "$_setvars_prefix/lib/libsycl.so" ]; then
    echo ":: ERROR: $_setvars_prefix/lib has no libsycl.so: this image is without oneAPI's wheels ::" >&2
    return 1
  fi

  # Triton looks for SYCL's headers and libraries in its compiler/latest, a link to the prefix.
  export ONEAPI_ROOT=/opt/intel/oneapi
  export CMPLR_ROOT="$_setvars_prefix"
  export CCL_ROOT="$_setvars_prefix" # its kernels are in lib/ccl
  export I_MPI_ROOT="$_setvars_prefix"
  export MKLROOT="$_setvars_prefix"
  export TBBROOT="$_setvars_prefix"
  # libfabric's providers (lib*-fi.so); it would look in /usr/local.
  export FI_PROVIDER_PATH="$_setvars_prefix/lib"
  # Intel's OpenCL for the CPU. The GPU's is in /etc/OpenCL/vendors.
  export OCL_ICD_FILENAMES="$_setvars_prefix/lib/libintelocl.so"

  # torch's libraries find the others by their RPATH; oneCCL's, MPI's and libfabric's have none, and
  # oneCCL opens libfabric.so by its name alone.
  LD_LIBRARY_PATH=$(_setvars_first "$_setvars_prefix/lib" "${LD_LIBRARY_PATH:-}")
  PATH=$(_setvars_first "$_setvars_prefix/bin" "${PATH:-}")
  PATH=$(_setvars_first "$_setvars_prefix/bin/libfabric" "$PATH") # fi_info itself, not its wrapper
  export LD_LIBRARY_PATH PATH
  export SETVARS_COMPLETED=1
  echo ":: oneAPI environment initialized: $_setvars_prefix ::" >&2
}

_setvars_first() { # DIRECTORY PATHS -> PATHS with DIRECTORY, first if it was not in there
  case ":$2:" in
    *":$1:"*) printf %s "$2" ;;
    *) printf %s "$1${2:+:$2}" ;;
  esac
}

# dash gives a sourced script the caller's words, bash those behind its name; of these '--force' counts.
_setvars "$@" && unset -f _setvars _setvars_first && unset -v _setvars_prefix && return 0
unset -f _setvars _setvars_first
unset -v _setvars_prefix
return 1
