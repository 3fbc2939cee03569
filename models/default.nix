# Models that the project makes itself: trained (or filled with random weights) by an image's own
# Python and torch. Weights are never committed.
{ images }:
let
  inherit (builtins)
    attrNames
    filter
    fromJSON
    listToAttrs
    pathExists
    readDir
    readFile
    ;

  names = filter (name: pathExists (./. + "/${name}/config.json")) (attrNames (readDir ./.));

  model =
    name:
    let
      image = images.byName.${(fromJSON (readFile (./. + "/${name}/model.json"))).image};
    in
    images.tools.run {
      name = "model-${name}";
      script = "model.py";
      spec = {
        inherit (image) prefix;
        model = "${./. + "/${name}"}";
        make = "${./make.py}";
        # Only what training needs is unpacked: these layers, these parts of them.
        layers = [
          "${image.base}"
          "${image.python}"
        ];
        python = image.pythonVersion;
      };
    };
in
{
  byName = listToAttrs (
    map (name: {
      inherit name;
      value = model name;
    }) names
  );
}
