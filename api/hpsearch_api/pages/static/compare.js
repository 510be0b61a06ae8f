// Studies side by side: one figure.
import "./common.js";
import { figures } from "./figures.js";

figures();
