# The loaders that firmware fetches over the network: files of locked packages, named as in image.yml.
{
  inputs,
  tools,
  lock,
}:
let
  files = inputs.files {
    inherit (tools) seed;
    inherit lock;
    image = "loaders";
  };
in
tools.run {
  name = "loaders";
  script = "loaders.py";
  modules = [ "deb.py" ];
  spec = {
    inherit (lock.system) files;
    debs = map (deb: { source = "${deb.source}"; }) files.debs;
  };
}
// {
  inherit (lock) debs; # for the bill of materials
}
