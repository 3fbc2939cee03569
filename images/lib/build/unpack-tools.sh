# Run by the seed's busybox: unpack the tools' packages into $out over a merged /usr.
# shellcheck shell=sh disable=SC2154 # out, busybox, debs and wheels are the derivation's
set -eu
"$busybox" mkdir -p "$out/usr/bin" "$out/usr/sbin" "$out/usr/lib" "$out/usr/lib64" "$out/wheels"
for directory in bin sbin lib lib64; do
  "$busybox" ln -s "usr/$directory" "$out/$directory"
done
for deb in $debs; do
  "$busybox" ar -p "$deb" data.tar.xz | "$busybox" tar -x -J -f - -C "$out"
done
for wheel in $wheels; do
  "$busybox" unzip -q -o "$wheel" -d "$out/wheels"
done
