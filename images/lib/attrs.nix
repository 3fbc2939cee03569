# Attribute names for the flake's outputs. Image names have dots, and nix's command line takes a dot
# as the separator of nested attributes.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elemAt
    filter
    foldl'
    groupBy
    isAttrs
    isString
    length
    listToAttrs
    mapAttrs
    replaceStrings
    split
    ;

  words = name: filter isString (split "\\." name);

  drop = list: builtins.genList (i: elemAt list (i + 1)) (length list - 1);

  put =
    tree: path: value:
    let
      head = elemAt path 0;
      below = tree.${head} or { };
    in
    tree
    // {
      ${head} =
        if length path == 1 then
          below // value
        else
          (if isAttrs below then below else { }) // put below (drop path) value;
    };
in
{
  # { "pxe-0.1" = A; "pxe-0.2" = B; sim = C; } -> { pxe-0 = { "1" = A; "2" = B; }; sim = C; }
  nest = byName: foldl' (tree: name: put tree (words name) byName.${name}) { } (attrNames byName);

  # "model-" { tiny = A; } -> { model-tiny = A; }
  prefixed =
    prefix: byName:
    listToAttrs (
      map (name: {
        name = prefix + name;
        value = byName.${name};
      }) (attrNames byName)
    );

  # { "pxe-0.1" = A; sim = B; } -> { pxe-0_1 = A; sim = B; }
  flatten =
    byName:
    mapAttrs (
      flat: names:
      if length names == 1 then
        byName.${elemAt names 0}
      else
        throw "${concatStringsSep " and " names} are both ${flat}: rename one"
    ) (groupBy (replaceStrings [ "." ] [ "_" ]) (attrNames byName));
}
