# The checks of `nix flake check`. They only evaluate, so that they work in a fresh checkout without
# network: a lock's files are in the store only after `orchestrate image fetch`. A check that passes
# is a small store path, made by one of Nix's built-in builders, since no program exists before files
# are fetched.
{
  locks, # all locks in images/, by directory
  images, # by name
}:
let
  inherit (builtins)
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    fromJSON
    groupBy
    isInt
    length
    mapAttrs
    match
    sort
    toFile
    toJSON
    unsafeDiscardStringContext
    ;

  inherit (import ./attrs.nix) prefixed;

  # Reads as "problem, unless condition".
  unless = condition: problem: if condition then [ ] else [ problem ];

  namesOf = map (entry: entry.name);
  twice =
    names:
    let
      same = groupBy (name: name) names;
    in
    filter (name: length same.${name} > 1) (attrNames same);

  # A derivation with the facts that were checked. It fails to evaluate if there are problems.
  check =
    name:
    {
      facts,
      problems,
    }:
    derivation {
      inherit name;
      system = "builtin";
      builder = "builtin:buildenv";
      derivations = [ ];
      manifest =
        if problems == [ ] then
          toFile "${name}.json" (toJSON facts)
        else
          throw "${name}: ${concatStringsSep "; " problems}";
      preferLocalBuild = true;
      allowSubstitutes = false;
    };

  # An entry of debs, wheels or sources.
  entryProblems =
    entry:
    let
      elsewhere = entry.elsewhere or false;
    in
    map (problem: "${entry.name}: ${problem}") (
      unless (match "[0-9a-f]{64}" entry.sha256 != null) "sha256 is not 64 hexadecimal digits"
      ++ unless (match "[0-9A-Za-z+._?=-]+" entry.store != null) "Nix's store takes no such name"
      ++ unless (elsewhere || isInt entry.size) "no size"
      ++ unless (!elsewhere || entry ? url) "no url, and it lies elsewhere"
    );

  # Problems of a lock that would otherwise stop a build only after minutes.
  ofLock =
    lock:
    let
      lists = {
        inherit (lock) debs wheels;
        sources = lock.sources or [ ];
      };
      entries = concatLists (attrValues lists);
      names = mapAttrs (_: namesOf) lists;
      python = if lock.python == null then null else "python${lock.python.version}-minimal";
    in
    {
      facts = mapAttrs (_: length) lists;
      problems =
        unless (lock.schema == 1) "schema is not 1"
        ++ concatMap entryProblems entries
        ++ concatMap (
          list:
          unless (sort (a: b: a < b) names.${list} == names.${list}) "${list} are not sorted by name"
          ++ map (name: "${name} is twice among ${list}") (twice names.${list})
        ) (attrNames lists)
        ++ map (store: "two files are ${store} in the store") (twice (map (entry: entry.store) entries))
        ++ unless (python == null || elem python names.debs) "${toString python} is not among debs"
        ++ map (name: "system.minimal: ${name} is neither a wheel nor a source") (
          filter (name: !elem name (names.wheels ++ names.sources)) (lock.system.minimal or [ ])
        );
    };

  # An image's derivations, by attribute. Listing them evaluates each one with all its inputs.
  derivations =
    image:
    mapAttrs (_: part: unsafeDiscardStringContext part.drvPath) {
      inherit image;
      inherit (image)
        base
        python
        config
        kernel
        initrd
        few
        minimal
        ;
    };

  # The layers in the future manifest have to be the ones that can be built separately.
  ofImage =
    image:
    let
      spec = fromJSON (unsafeDiscardStringContext image.spec);
      outPath = part: unsafeDiscardStringContext part.outPath;
      layers =
        map
          (name: {
            inherit name;
            mount = if name == "python" then image.prefix else null;
            path = outPath image.${name};
            verity = outPath image.verity.${name};
          })
          [
            "base"
            "python"
            "config"
          ];
    in
    {
      facts = {
        inherit (spec) name epoch layers;
        derivations = derivations image;
      };
      problems = unless (
        spec.layers == layers
      ) "layers are ${toJSON spec.layers} and not ${toJSON layers}";
    };

  checks =
    kind: of: byName:
    mapAttrs (name: thing: check name (of thing)) (prefixed "${kind}-" byName);
in
checks "lock" ofLock locks
// checks "image" ofImage images
// checks "available" ofImage (mapAttrs (_: image: image.available) images)
