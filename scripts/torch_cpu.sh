# Sourced: where the CPU build of torch comes from. Adds uv's arguments for it to the array `args`.
# From the folder or page that PIP_FIND_LINKS names where one is set and holds it, else from
# PyTorch's own CPU index, which uv knows by name.
# $1: a Python with pip.
torch_cpu() {
  args+=(--override overrides.txt)
  export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
  UV_FIND_LINKS=${UV_FIND_LINKS// /,}
  probe=$(mktemp -d) && trap 'rm -rf "$probe"' EXIT
  if [ -n "$UV_FIND_LINKS" ] && "$1" -m pip download -q --no-deps --no-index \
       --find-links "${UV_FIND_LINKS%%,*}" -d "$probe" 'torch==2.13.0+cpu' >/dev/null 2>&1; then
    args+=('torch==2.13.0+cpu')
  else
    unset UV_FIND_LINKS
    args+=(--torch-backend cpu)
  fi
}
