# What init's steps use: the command line, consoles, reports, trying again. Read by init.
# shellcheck shell=busybox disable=SC2034,SC2154 # names are shared with init

parameter() { # NAME -> its value on the kernel command line
  tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1
}

say() { # on every console
  local consoles console
  read -r consoles </sys/class/tty/console/active
  for console in $consoles; do echo "orchestrate: $*" >"/dev/$console"; done
}

# Reports go to the consoles, and to the server in order, beside all else. Those from before there is a
# network wait in a file; one that the server does not take is dropped: it never stops the boot.

report() { # STEP STATUS TEXT
  local uptime line
  read -r uptime _ </proc/uptime
  line="$1 $2 $uptime${3:+ $3}"
  say "$line"
  if [ -p "$scratch/pipe" ]; then echo "$line" >&3; else echo "$line" >>"$scratch/reports"; fi
}

begin_reports() { # of who= the machine and its boot, in $scratch
  mkfifo "$scratch/pipe"
  deliver <"$scratch/pipe" &
  reporter=$!
  exec 3>"$scratch/pipe"
  [ ! -e "$scratch/reports" ] || cat "$scratch/reports" >&3
}

deliver() {
  local line
  while read -r line; do
    timeout 5 wget -q -O /dev/null --post-data "$line" "$server/boot/report?$who" 2>/dev/null
  done
}

end_reports() { # when the last one is delivered
  exec 3>&-
  wait "$reporter"
  rm "$scratch/pipe"
}

step() { # NAME COMMAND...: until it succeeds. It sets `cause` where it fails, `result` at will.
  local pause=1
  step=$1 cause='' result=''
  shift
  report "$step" start
  until "$@"; do
    report "$step" failed "$cause; once more in $pause s"
    case " $(cat /proc/cmdline) " in *' rd.shell '*) open_shell ;; esac
    sleep "$pause"
    pause=$((pause * 2 > 60 ? 60 : pause * 2))
  done
  report "$step" 'done' "$result"
}

open_shell() { # one at a time: layers can fail together
  until mkdir /run/shell 2>/dev/null; do sleep 1; done
  say "a shell, since rd.shell is on the command line; 'exit' tries $step again"
  setsid cttyhack sh
  rmdir /run/shell
}

# Busybox's own time limit (-T) crashes in Debian 12's static build.
get() { # SECONDS FILE WORDS...: wget, ended where FILE does not grow for so long
  local left=$1 limit=$1 file=$2 size='' now pid pause=0.1
  shift 2
  wget -q "$@" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    now=$(stat -c %s "$file" 2>/dev/null)
    left=$((left - 1))
    [ "$now" = "$size" ] || left=$limit size=$now
    [ "$left" -gt 0 ] || { echo "nothing came for $limit s" >&2 && kill "$pid"; }
    sleep $pause
    pause=1
  done
  wait "$pid"
}

wait_for() { # SECONDS COMMAND...: until it succeeds, at most so long
  local tries=$(($1 * 5))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.2
  done
}
