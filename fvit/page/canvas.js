// What is drawn and read of one claim on the explanation: its picture with the explanation or the certified map on it.

// As fvit/runtime/drawing.py has them: of each side a tint, and between which shares of it the picture's greys lie.
// Each channel by itself is lighter in the one than in the other.
const TONES = [
  [[191, 204, 255], 0.03, 0.2], // out
  [[217, 235, 255], 0.36, 0.5], // open
  [[255, 242, 204], 0.78, 1.0], // in
];
const HATCH = 0.56;

// Of every token at a radius: 1 in, −1 out, 0 open; null where there is no map, as of means.
export function sides(claim, radius) {
  return claim.map_radii?.map((each) => (Math.abs(each) >= radius ? Math.sign(each) : 0)) ?? null;
}

// The picture as the service has it: scaled to cover, cut at the centre.
export function picture(canvas, bitmap, ground) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = ground;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (!bitmap) return;
  const scale = Math.max(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [w, h] = [canvas.width / scale, canvas.height / scale];
  const [left, top] = [(bitmap.width - w) / 2, (bitmap.height - h) / 2];
  pen.drawImage(bitmap, left, top, w, h, 0, 0, canvas.width, canvas.height);
}

// Shadow where few copies vote; the k tokens outlined.
export function explanation(canvas, claim) {
  const pen = canvas.getContext("2d");
  const [rows, columns] = claim.grid;
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  const copies = claim.votes.reduce((sum, each) => sum + each, 0) / claim.k;
  claim.votes.forEach((votes, token) => {
    pen.fillStyle = `rgb(8 10 20 / ${0.62 * (1 - votes / copies)})`;
    pen.fillRect((token % columns) * w, Math.floor(token / columns) * h, w, h);
  });
  outlines(canvas, claim);
}

// The k tokens, the wider the larger the radius of their place; dashed where it is not certified.
export function outlines(canvas, claim) {
  const pen = canvas.getContext("2d");
  const [rows, columns] = claim.grid;
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  const most = Math.max(...claim.token_radii, 1e-9);
  const widest = Math.min(9, w / 5);
  claim.tokens.forEach((token, place) => {
    const radius = claim.token_radii[place];
    pen.lineWidth = radius > 0 ? widest / 3 + ((2 * widest) / 3) * (radius / most) : 2;
    pen.strokeStyle = radius > 0 ? "#00e0a0" : "#c3cad9";
    pen.setLineDash(radius > 0 ? [] : [7, 6]);
    const gap = pen.lineWidth / 2 + 1;
    pen.strokeRect((token % columns) * w + gap, Math.floor(token / columns) * h + gap, w - 2 * gap, h - 2 * gap);
  });
  pen.setLineDash([]);
}

// Three tones: in is light with an outline, open is grey and hatched, out is dark.
export function map(canvas, claim, radius) {
  const pen = canvas.getContext("2d");
  const [rows, columns] = claim.grid;
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  const at = sides(claim, radius);
  const drawn = pen.getImageData(0, 0, canvas.width, canvas.height);
  const light = drawn.data;
  const size = Math.min(w, h);
  const [period, line, pencil] = [Math.max(4, Math.round(size / 5)), Math.max(1, size / 20), Math.max(1, size / 16)];
  // How far the middle of a pixel is from the nearer edge of its token.
  const edge = (at, length) => {
    const inside = ((at + 0.5) / length) % 1;
    return Math.min(inside, 1 - inside) * length;
  };
  for (let y = 0, byte = 0; y < canvas.height; y++) {
    const row = Math.floor((y + 0.5) / h) * columns;
    const above = edge(y, h);
    for (let x = 0; x < canvas.width; x++, byte += 4) {
      const side = at[row + Math.floor((x + 0.5) / w)];
      const [tint, low, high] = TONES[side + 1];
      const grey = (0.299 * light[byte] + 0.587 * light[byte + 1] + 0.114 * light[byte + 2]) / 255;
      const hatched = side === 0 && (x + y) % period < line;
      const share = hatched ? HATCH : low + (high - low) * grey;
      const outlined = side === 1 && Math.min(above, edge(x, w)) < pencil;
      for (let channel = 0; channel < 3; channel++) light[byte + channel] = outlined ? 255 : tint[channel] * share;
    }
  }
  pen.putImageData(drawn, 0, 0);
}

// The token that is read, in a frame of two tones that stands out from each.
export function cursor(canvas, claim, token) {
  const pen = canvas.getContext("2d");
  const [rows, columns] = claim.grid;
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  for (const [colour, width] of [["#000000", 6], ["#ffd400", 3]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.strokeRect((token % columns) * w + 3, Math.floor(token / columns) * h + 3, w - 6, h - 6);
  }
}

// A radius as a person reads it, cut off: rounded up it would claim more.
export function digits(radius, count) {
  const text = radius.toFixed(count);
  return Number(text) > radius ? (Number(text) - 10 ** -count).toFixed(count) : text;
}

// What the record says of one token.
export function words(claim, token, copies) {
  const [row, column] = [Math.floor(token / claim.grid[1]) + 1, (token % claim.grid[1]) + 1];
  const radius = claim.map_radii?.[token];
  const side = radius > 0 ? `in within ${radius}` : radius < 0 ? `out within ${-radius}` : "open";
  const place = claim.tokens.indexOf(token);
  return (
    `Row ${row}, column ${column}: top ${claim.k} in ${claim.votes[token].toLocaleString("en")} of ` +
    `${copies.toLocaleString("en")} copies` +
    (claim.map_radii ? `; ${side}` : "") +
    (place < 0 ? "." : `; its place is certified within ${digits(claim.token_radii[place], 4)}.`)
  );
}

// The token under the pointer.
export function pointed(canvas, claim, event) {
  const [rows, columns] = claim.grid;
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const at = (place, size, count) => Math.min(count - 1, Math.max(0, Math.floor((place / size) * count)));
  return at(event.clientY - top, height, rows) * columns + at(event.clientX - left, width, columns);
}

// The token that a key leads to from another, null for none; undefined where the key leads nowhere.
export function stepped(claim, token, key) {
  const columns = claim.grid[1];
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (key === "Escape") return null;
  if (!(key in steps)) return undefined;
  const next = token === null ? 0 : token + steps[key];
  return next >= 0 && next < claim.votes.length ? next : token;
}
