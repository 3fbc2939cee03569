# A wheel from a source distribution, as a directory that holds it: built in the sandbox on the
# Python and the wheels of images/builders, which is fetched only where a lock has sources.
{
  inputs,
  tools,
  lock,
}:
let
  files = inputs.files {
    inherit (tools) seed;
    inherit lock;
    image = "builders";
  };
  listed = map (entry: {
    inherit (entry) name;
    file = entry.file or "";
    source = "${entry.source}";
  });
in
entry:
tools.run {
  name = "${entry.name}-wheel";
  script = "source.py";
  modules = [
    "backend.py"
    "deb.py"
  ];
  spec = {
    # Its own date, so that images of several dates have the wheel in common.
    inherit (lock) epoch;
    python = lock.python.version;
    debs = listed files.debs;
    wheels = listed files.wheels;
    inherit (entry) name version file;
    environment = entry.environment or { };
    source = "${entry.source}";
  };
}
