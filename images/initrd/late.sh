# Late layers: the system starts without them and fetches them while it runs. Sourced by init.
# shellcheck shell=busybox disable=SC2034,SC2154 # names are shared with init

late_home=$run/late # a copy of what fetch-layer needs, since the initrd is gone by then

choose_late() { # set $late: the layers of orchestrate.late= that have a mount point of their own
  local wanted name mount
  for wanted in $(parameter orchestrate.late | tr ',' ' '); do
    while read -r name _ _ _ _ _ _ _ _ _ mount; do
      [ "$name" != "$wanted" ] || [ "$mount" = - ] || late="$late $name"
    done <"$list"
  done
  return 0
}

is_late() { # NAME
  case "$late " in *" $1 "*) return 0 ;; esac
  return 1
}

leave_late() { # write for each late layer a service that fetches it and a unit that mounts it. Each
  # service waits for the one before.
  local units=/run/systemd/system name mount unit after=ssh.service
  [ -n "$late" ] || return 0
  cause="what fetches the late layers cannot be copied: is there no memory left?"
  mkdir -p "$late_home/bin" $units/multi-user.target.wants &&
    cp /bin/busybox /common.sh /layers.sh /fetch-layer "$late_home" &&
    known >"$late_home/boot" && chmod 600 "$late_home/boot" || return 1
  for name in $late; do
    mount=$(sed -n "s/^$name .* //p" "$list")
    # The unit's name has to be what `systemd-escape --path` prints.
    unit=$(echo "${mount#/}" | sed 's/-/\\x2d/g; s,/,-,g').mount
    late_service "$name" "$after" >"$units/orchestrate-layer-$name.service"
    late_mount "$name" "$mount" >"$units/$unit"
    ln -sf "../$unit" "$units/multi-user.target.wants/$unit"
    mkdir -p "$run/upper/$name" "$run/upper/$name.work"
    after=orchestrate-layer-$name.service
  done
}

known() { # print the variables that fetch-layer needs, as shell assignments
  printf '%s\n' "server='$server'" "image='$image'" "sources='$sources'" "who='$who'"
}

late_service() { # NAME AFTER
  cat <<END
[Unit]
Description=The image's layer '$1': fetch and check it
After=$2

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$late_home/fetch-layer $1
TimeoutStartSec=infinity
StandardOutput=journal+console
END
}

late_mount() { # NAME DIRECTORY: an overlay of this layer and of the other layers' files below DIRECTORY
  local each stack=''
  while read -r each _; do
    [ "$each" = "$1" ] || [ -d "$lower/$each$2" ] || continue
    stack="$lower/$each$2${stack:+:$stack}"
  done <"$list"
  cat <<END
[Unit]
Description=The image's layer '$1'
Requires=orchestrate-layer-$1.service
After=orchestrate-layer-$1.service
# By default local-fs.target waits for a mount; this one comes after the system has started.
DefaultDependencies=no
Conflicts=umount.target
Before=umount.target

[Mount]
What=overlay
Where=$2
Type=overlay
Options=lowerdir=$stack,upperdir=$run/upper/$1,workdir=$run/upper/$1.work
END
}
