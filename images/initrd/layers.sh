# Fetch a layer from the cache or a source, open it under dm-verity, mount it. Sourced by init, and by
# fetch-layer once the system runs.
# shellcheck shell=busybox disable=SC2034,SC2154 # names are shared with both

run=/run/orchestrate # moved into the image's root at the switch
layers=$run/layers   # files by their names in the manifest; a node can serve them to other nodes
lower=$run/lower     # where each layer is mounted
cache=$run/cache     # where the cache disk is mounted, if there is one; its files are sha256/HASH
list=$run/layers.list # a line per layer: NAME, fetch_layer's arguments, mount point; the lowest first

# FILE SIZE SHA256: the layer; TREE SIZE SHA256: its hash tree; BLOCKS ROOT SALT: for dm-verity. The
# layer's name is in $name. The same arguments go to bring_layer, open_layer and keep_layer.
fetch_layer() {
  bring "$4" "$5" "$6" && bring_layer "$@" || return 1
  result="$(($2 + $5)) bytes from $source"
}

bring() { # FILE SIZE SHA256: have FILE in $layers, checked
  [ ! -e "$layers/$1" ] || return 0
  if [ -f "$cache/sha256/$3" ]; then
    source=cache
    has_hash "$3" "$cache/sha256/$3" && use_cached "$1" "$3" && return 0
    drop_cached "$1" "$3"
  fi
  for source in $sources; do
    download "$1" "$2" "has_hash $3" && return 0
    [ "$source" = "$server" ] || report "$step" failed "$cause"
  done
  return 1
}

bring_layer() { # fetch_layer's arguments: have the layer mounted. dm-verity checks it, not the sha256.
  [ ! -d "$lower/$name" ] || return 0
  if [ -f "$cache/sha256/$3" ]; then
    source=cache
    use_cached "$1" "$3" && open_layer "$@" && return 0
    drop_cached "$1" "$3"
  fi
  for source in $sources; do
    download "$1" "$2" "has_size $2" && open_layer "$@" && return 0
    [ "$source" = "$server" ] || report "$step" failed "$cause"
  done
  return 1
}

use_cached() { # FILE SHA256: a link to the cached file, which takes no memory
  ln -sf "../cache/sha256/$2" "$layers/$1"
}

drop_cached() { # FILE SHA256
  rm -f "$cache/sha256/$2" "$layers/$1"
  report "$step" failed "$1 in the cache is not what the manifest says; removed"
}

has_hash() { # SHA256 FILE
  [ "$(sha256sum <"$2")" = "$1  -" ]
}

has_size() { # BYTES FILE
  [ "$(stat -c %s "$2")" = "$1" ]
}

download() { # FILE SIZE CHECK: from $source. SIZE 0: unknown. CHECK: a command that gets the path.
  local url="$source/images/$image/$1" part="$layers/.$1" said="$layers/.said.$1" limit=15 have most=$2
  [ "$source" = "$server" ] || limit=5
  [ "$most" != 0 ] || most=8388608 # a manifest has some kilobytes
  # -c: resume a download that broke off.
  get $limit "$most" "$part" -c -O "$part" "$url" 2>"$said" && $3 "$part" &&
    mv "$part" "$layers/$1" && return 0
  have=$(stat -c %s "$part" 2>/dev/null || echo 0)
  if [ "$have" = 0 ] || [ "$have" -lt "$2" ]; then
    cause="$1: $have of $2 bytes from $source: $(tr '\n' ' ' <"$said")"
  else
    rm "$part"
    cause="$1 from $source is not what the manifest says (its sha256 or size)"
  fi
  return 1
}

open_layer() { # fetch_layer's arguments: mount the layer at $lower/$name, after checking every block
  local data tree device
  cause="no loop device for $1"
  data=$(loop_of "$1") || return 1
  tree=$(loop_of "$4") || return 1
  cause="$1 under dm-verity: $(dmsetup create "$name" --readonly --noudevsync --table \
    "0 $(($7 * 8)) verity 1 $data $tree 4096 4096 $7 0 sha256 $8 $9" 2>&1)"
  # Use the kernel's name of the device: there is no udev here to make the one in /dev/mapper.
  device=/dev/dm-$(dmsetup info --columns --noheadings --options minor "$name" 2>/dev/null)
  if [ -b "$device" ]; then
    cause="$1 from $source is not what the manifest says: a block has another hash"
    read_through "$device" "$7" && mkdir "$lower/$name" &&
      cause="$1: $(mount -t squashfs -o ro "$device" "$lower/$name" 2>&1)" && return 0
    rmdir "$lower/$name" 2>/dev/null
    dmsetup remove "$name"
  fi
  losetup -d "$data"
  losetup -d "$tree"
  rm "$layers/$1"
  return 1
}

loop_of() { # FILE: print a loop device for it. Retries, since layers look for a free one in parallel.
  local device tries=50
  until device=$(losetup -f) && losetup -r "$device" "$layers/$1" 2>/dev/null; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.1
  done
  echo "$device"
}

read_through() { # DEVICE BLOCKS: read it all, on all processors, so that dm-verity checks each block.
  # Direct reads, so that nothing fills the page cache.
  local size=$((($2 + 255) / 256)) share from=0 pid pids='' bad=''
  share=$((size / $(nproc) + 1))
  while [ $from -lt $size ]; do
    dd if="$1" of=/dev/null bs=1M iflag=direct skip=$from count=$share 2>/dev/null &
    pids="$pids $!"
    from=$((from + share))
  done
  for pid in $pids; do wait "$pid" || bad=1; done
  [ -z "$bad" ]
}

keep_layer() { # fetch_layer's arguments: copy the layer into the cache, if there is one. Errors of the
  # disk do not stop the boot.
  [ -d $cache/sha256 ] || return 0
  keep "$1" "$3" && keep "$4" "$6" && return 0
  say "cache: no room for $1, or a read-only disk; going on without"
}

keep() { # FILE SHA256: copy into the cache; if the disk is full, delete other images' files first
  local cached="$cache/sha256/$2" old
  [ ! -e "$cached" ] || return 0
  cp "$layers/$1" "$cached.new" || {
    rm -f "$cached.new"
    for old in "$cache"/sha256/*; do grep -q "${old##*/}" $list || rm -f "$old"; done
    cp "$layers/$1" "$cached.new"
  } && mv "$cached.new" "$cached"
} 2>/dev/null
