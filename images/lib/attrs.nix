# Attribute names with dots, as the nix command line reads them.
let
  inherit (builtins)
    attrNames
    elemAt
    foldl'
    isAttrs
    isString
    filter
    length
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

}
