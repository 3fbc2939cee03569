# Bringing a layer: from the cache or a source, under dm-verity, mounted. Read by init, and by fetch-layer
# once the system runs.
# shellcheck shell=busybox disable=SC2034,SC2154 # names are shared with both

run=/run/orchestrate # goes along into the image's root
layers=$run/layers   # files by their names in the manifest; a node can serve them to others
lower=$run/lower     # where each layer is mounted
cache=$run/cache     # the disk labelled for it, where there is one: sha256/HASH
list=$run/layers.list # a line a layer, as fetch_layer takes it, the lowest first

fetch_layer() { # FILE SIZE SHA256 TREE SIZE SHA256 BLOCKS ROOT SALT, of the layer $name
  bring "$4" "$5" "$6" && bring_layer "$@" || return 1
  result="$(($2 + $5)) bytes from $source"
}

bring() { # FILE SIZE SHA256
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

bring_layer() { # as fetch_layer
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

use_cached() { # FILE SHA256: used where it lies, it takes no memory
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

download() { # FILE SIZE CHECK from $source. SIZE 0: not known
  local url="$source/images/$image/$1" part="$layers/.$1" said="$layers/.said.$1" limit=15 have
  [ "$source" = "$server" ] || limit=5
  # It goes on where it was cut off.
  get $limit "$part" -c -O "$part" "$url" 2>"$said" && $3 "$part" &&
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

open_layer() { # as fetch_layer: the layer at $lower/$name under dm-verity, all of it compared
  local data tree device
  cause="no loop device for $1"
  data=$(loop_of "$1") || return 1
  tree=$(loop_of "$4") || return 1
  cause="$1 under dm-verity: $(dmsetup create "$name" --readonly --noudevsync --table \
    "0 $(($7 * 8)) verity 1 $data $tree 4096 4096 $7 0 sha256 $8 $9" 2>&1)"
  # The kernel names the device; its alias in /dev/mapper would be udev's work.
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

loop_of() { # FILE -> a device of it. Others look for a free one at the same time.
  local device tries=50
  until device=$(losetup -f) && losetup -r "$device" "$layers/$1" 2>/dev/null; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.1
  done
  echo "$device"
}

read_through() { # DEVICE BLOCKS: all of it, by all processors; the kernel compares. Kept nowhere.
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

keep_layer() { # as fetch_layer: into the cache, where there is one. The disk's own errors stop nothing.
  [ -d $cache/sha256 ] || return 0
  keep "$1" "$3" && keep "$4" "$6" && return 0
  say "cache: no room for $1, or a read-only disk; going on without"
}

keep() { # FILE SHA256. Where there is no room, other images' files make some.
  local cached="$cache/sha256/$2" old
  [ ! -e "$cached" ] || return 0
  cp "$layers/$1" "$cached.new" || {
    rm -f "$cached.new"
    for old in "$cache"/sha256/*; do grep -q "${old##*/}" $list || rm -f "$old"; done
    cp "$layers/$1" "$cached.new"
  } && mv "$cached.new" "$cached"
} 2>/dev/null
