# Functions that init's steps share: kernel parameters, console output, reports, retries. Sourced by
# init and by fetch-layer.
# shellcheck shell=busybox disable=SC2034,SC2154 # names are shared with init

parameter() { # NAME -> its value on the kernel command line
  tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1
}

say() { # on every console
  local consoles console
  read -r consoles </sys/class/tty/console/active
  for console in $consoles; do echo "orchestrate: $*" >"/dev/$console"; done
}

# A report goes to the consoles at once. A background process sends it to the server, in order. Reports
# made before the network is up wait in a file. A report that the server does not accept is dropped, so
# that reporting never stops the boot.

report() { # STEP STATUS TEXT
  local uptime line
  read -r uptime _ </proc/uptime
  line="$1 $2 $uptime${3:+ $3}"
  say "$line"
  if [ -p "$scratch/pipe" ]; then echo "$line" >&3; else echo "$line" >>"$scratch/reports"; fi
}

begin_reports() { # start the sender. $who: the query that names machine and boot; $scratch: its files
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

end_reports() { # wait until the last report is sent
  exec 3>&-
  wait "$reporter"
  rm "$scratch/pipe"
}

step() { # NAME COMMAND...: repeat COMMAND until it succeeds, with pauses of 1 to 60 s. COMMAND sets
  # `cause` when it fails, and may set `result` when it succeeds; both go into the report.
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

open_shell() { # only one at a time: several layers can fail together
  until mkdir /run/shell 2>/dev/null; do sleep 1; done
  say "a shell, since rd.shell is on the command line; 'exit' tries $step again"
  setsid cttyhack sh
  rmdir /run/shell
}

# Used instead of wget's time limit (-T), which crashes in Debian 12's static busybox.
get() { # SECONDS BYTES FILE ARGUMENTS...: run wget; stop it when FILE has not grown for SECONDS
  local left=$1 limit=$1 most=$2 file=$3 size='' now pid pause=0.1
  shift 3
  # The kernel kills it when FILE would be larger than BYTES (in units of 512), whatever the server sends.
  (ulimit -f $(((most + 511) / 512)) && exec wget -q "$@") &
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

wait_for() { # SECONDS COMMAND...: repeat COMMAND until it succeeds; fail after about SECONDS
  local tries=$(($1 * 5))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.2
  done
}
