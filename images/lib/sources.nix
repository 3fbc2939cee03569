# A directory with a wheel that is built from a source distribution, in the sandbox, with the Python
# and the wheels of images/builders. Those are fetched only if a lock has sources.
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
    # The builders' date, so that images with different dates share the wheel.
    inherit (lock) epoch;
    python = lock.python.version;
    debs = listed files.debs;
    wheels = listed files.wheels;
    inherit (entry) name version file;
    environment = entry.environment or { };
    source = "${entry.source}";
  };
}
