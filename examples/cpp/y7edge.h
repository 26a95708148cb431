/* Decode the heads of a YOLOv7 model of y7edge: candidates, boxes, NMS, pixels of the image.
 *
 * One header for C99 and C++11, without dependencies. It allocates no memory and has no state:
 *
 *     #include "model.h"                     // y7edge info MODEL --c-header model.h
 *
 *     size_t size = y7edge_workspace_size(&y7edge_model);
 *     void *workspace = malloc(size);        // once
 *     y7edge_criteria criteria = y7edge_default_criteria(&y7edge_model);
 *     y7edge_tensor heads[] = {{head0, bytes0}, {head1, bytes1}, {head2, bytes2}};
 *     y7edge_box boxes[300];
 *     int count = y7edge_decode(&y7edge_model, heads, 0, &criteria, workspace, size, boxes, 300);
 *     y7edge_letterbox fit = y7edge_fit(&y7edge_model, image_width, image_height);
 *     count = y7edge_to_image(&fit, boxes, count);
 *
 * The boxes are those of y7edge's Detector. A candidate has a score above the threshold; the score
 * is objectness x probability of the best class, or the objectness if there is only one class. NMS
 * is greedy, by class; a box is removed if its IoU with a better box is above the threshold.
 * Candidates with equal scores keep their order (level, anchor, row, column). NaN is never a
 * candidate, and boxes that are not finite are dropped.
 *
 * Arithmetic is float32 in the order of y7edge/detect/postprocess.py. The only function of the C
 * library with another rounding than numpy's is expf, so that boxes of heads with sigmoids
 * ("activation": "sigmoid") are equal bit by bit, and others to a few units in the last place. This
 * requires a compiler that does not contract a * b + c: -ffp-contract=off with gcc and clang.
 */
#ifndef Y7EDGE_H
#define Y7EDGE_H

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "compile without -ffast-math: NaN and infinity in the heads must be recognised"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Limits of a model, as in y7edge/artifact/bounds.py. */
enum {
  Y7EDGE_MAX_LEVELS = 8,
  Y7EDGE_MAX_STRIDE = 1024,
  Y7EDGE_MAX_ANCHORS = 64,
  Y7EDGE_MAX_CLASSES = 65536,
  Y7EDGE_MAX_SIDE = 16384,
  Y7EDGE_MAX_CANDIDATES = 30000 /* of one image, those with the best scores */
};

/* Errors, returned instead of a number of boxes. */
enum {
  Y7EDGE_BAD_MODEL = -1,     /* a constant of the model is out of range */
  Y7EDGE_BAD_ARGUMENT = -2,  /* a null pointer, a threshold that is not 0 to 1, no such image */
  Y7EDGE_SMALL_HEAD = -3,    /* a head has fewer bytes than the model's */
  Y7EDGE_SMALL_WORKSPACE = -4 /* see y7edge_workspace_size */
};

typedef enum {
  Y7EDGE_FLOAT32,
  Y7EDGE_FLOAT16,
  Y7EDGE_INT8,
  Y7EDGE_UINT8,
  Y7EDGE_INT16,
  Y7EDGE_UINT16
} y7edge_dtype;

/* The head of one level: (batch, anchors * (5 + classes), rows, columns), or with the channels
 * last. The five values before the classes are x, y, width, height and objectness. */
typedef struct {
  const char *name;
  y7edge_dtype dtype;
  int channels_last; /* 0: NCHW, 1: NHWC */
  int sigmoid;       /* 0: values are logits, 1: values are probabilities */
  double scale;      /* of integers: real value = (value - zero_point) * scale */
  int zero_point;
  int stride;
  int anchors;          /* number of anchors */
  const float *anchor;  /* width and height of each anchor, in pixels of the input */
} y7edge_head;

typedef struct {
  const char *name;
  const char *digest; /* SHA-256 of the artifact's manifest */
  /* The input: pixel values 0 to 255 are multiplied by input_scale; then input_zero is added. */
  const char *input_name;
  int batch; /* 0: any number of images */
  int height, width;
  int input_channels_last;
  y7edge_dtype input_dtype;
  double input_scale;
  int input_zero;
  int bgr; /* order of the channels: 0: RGB, 1: BGR */
  int pad; /* grey of the letterbox, 0 to 255 */
  int black, white; /* values of 16-bit images that become 0 and 255; both 0: 8-bit images only */
  int classes;
  const char *const *names; /* UTF-8 */
  double conf, iou;         /* default thresholds */
  int max_det;
  int levels;
  const y7edge_head *heads; /* finest level first */
} y7edge_model_info;

/* Memory of the engine: the values of one output, for the whole batch. */
typedef struct {
  const void *data;
  size_t bytes;
} y7edge_tensor;

typedef struct {
  double conf;             /* keep boxes with a greater score */
  double iou;              /* remove boxes whose IoU with a better box is greater */
  int max_det;             /* boxes per image */
  int agnostic;            /* 1: in NMS, compare boxes of different classes too */
  const float *class_conf; /* NULL, or a threshold for each class, in addition to conf */
  const uint8_t *wanted;   /* NULL, or 0 for each class whose boxes are dropped before NMS */
} y7edge_criteria;

typedef struct {
  float x0, y0, x1, y1; /* corners, in pixels */
  float score;
  int class_id;
} y7edge_box;

/* How an image is fitted into the input: resized to width x height, at (left, top). */
typedef struct {
  int image_width, image_height;
  int width, height;
  int left, top;
} y7edge_letterbox;

/* --- implementation of the functions below ---------------------------------------------------- */

typedef struct {
  float score;
  uint32_t place; /* index of anchor and cell: by level, anchor, row, column */
  int32_t class_id;
} y7edge__candidate;

static inline size_t y7edge__size_of(y7edge_dtype dtype) {
  if (dtype == Y7EDGE_FLOAT32) return 4;
  return dtype == Y7EDGE_INT8 || dtype == Y7EDGE_UINT8 ? 1 : 2;
}

static inline int y7edge__is_real(y7edge_dtype dtype) {
  return dtype == Y7EDGE_FLOAT32 || dtype == Y7EDGE_FLOAT16;
}

static inline float y7edge__half(uint16_t bits) {
  uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 1023u, single;
  float value;
  if (exponent == 0) { /* zero or subnormal: fraction x 2^-24 is exact */
    value = (float)fraction * (1.0f / 16777216.0f);
    return bits & 0x8000u ? -value : value;
  }
  exponent = exponent == 31u ? 255u : exponent + 112u;
  single = (uint32_t)(bits & 0x8000u) << 16 | exponent << 23 | fraction << 13;
  memcpy(&value, &single, sizeof value);
  return value;
}

/* Return the value at an index as float; integers are not dequantised. memcpy, because the memory
 * of an engine need not be aligned. */
static inline float y7edge__raw(const unsigned char *data, y7edge_dtype dtype, size_t index) {
  uint16_t word;
  int16_t signed_word;
  float value;
  switch (dtype) {
    case Y7EDGE_FLOAT32:
      memcpy(&value, data + 4 * index, 4);
      return value;
    case Y7EDGE_INT8:
      return (float)(data[index] < 128 ? data[index] : data[index] - 256);
    case Y7EDGE_UINT8:
      return (float)data[index];
    case Y7EDGE_INT16:
      memcpy(&signed_word, data + 2 * index, 2);
      return (float)signed_word;
    default:
      memcpy(&word, data + 2 * index, 2);
      return dtype == Y7EDGE_UINT16 ? (float)word : y7edge__half(word);
  }
}

/* One image of one head. */
typedef struct {
  const y7edge_head *head;
  const unsigned char *data;
  size_t area, fields; /* rows x columns, 5 + classes */
  size_t step;         /* between two values of a cell */
  uint32_t first;      /* place of its first anchor and cell */
} y7edge__view;

static inline size_t y7edge__index(const y7edge__view *view, size_t anchor, size_t cell) {
  return view->head->channels_last ? (cell * (size_t)view->head->anchors + anchor) * view->fields
                                   : anchor * view->fields * view->area + cell;
}

static inline float y7edge__value(const y7edge__view *view, size_t index) {
  float value = y7edge__raw(view->data, view->head->dtype, index);
  if (y7edge__is_real(view->head->dtype)) return value;
  return (value - (float)view->head->zero_point) * (float)view->head->scale;
}

static inline float y7edge__activate(const y7edge_head *head, float value) {
  return head->sigmoid ? value : 1.0f / (1.0f + expf(-value));
}

/* Return the threshold of a first scan of the raw objectness. It is lower than conf by more than
 * the rounding errors, so that no box is missed. */
static inline float y7edge__least(const y7edge_head *head, double conf) {
  double cut = conf * (1 - 1.0 / 1048576.0), lowest, highest;
  if (!head->sigmoid) {
    cut = conf <= 0 ? -HUGE_VAL : HUGE_VAL;
    if (conf > 0 && conf < 1) {
      cut = log(conf / (1 - conf)) - 1e-3 - 1.0 / 2097152.0 / (conf * (1 - conf));
    }
  }
  if (y7edge__is_real(head->dtype)) {
    if (cut > FLT_MAX) return FLT_MAX;
    return cut < -FLT_MAX ? -HUGE_VALF : nextafterf((float)cut, -HUGE_VALF);
  }
  lowest = head->dtype == Y7EDGE_INT8 ? -128 : head->dtype == Y7EDGE_INT16 ? -32768 : 0;
  highest = lowest + (y7edge__size_of(head->dtype) == 1 ? 255 : 65535);
  cut = floor(cut / head->scale) + head->zero_point;
  return (float)(cut < lowest ? lowest : cut > highest ? highest : cut);
}

/* Return whether one candidate is better than another. No two are equal. */
static inline int y7edge__better(const y7edge__candidate *one, const y7edge__candidate *other) {
  return one->score > other->score || (one->score == other->score && one->place < other->place);
}

/* Move heap[root] down until it is better than both of its children. */
static inline void y7edge__sink(y7edge__candidate *heap, size_t count, size_t root) {
  y7edge__candidate moved = heap[root];
  size_t child;
  while ((child = 2 * root + 1) < count) {
    if (child + 1 < count && y7edge__better(&heap[child + 1], &heap[child])) child++;
    if (y7edge__better(&moved, &heap[child])) break;
    heap[root] = heap[child];
    root = child;
  }
  heap[root] = moved;
}

/* Add the pair of anchor and cell to the candidates if its score is high enough. */
static inline size_t y7edge__examine(const y7edge__view *view, size_t anchor, size_t cell,
                                     float least, const y7edge_criteria *criteria,
                                     y7edge__candidate *found, size_t count) {
  const y7edge_head *head = view->head;
  size_t index = y7edge__index(view, anchor, cell), classes = view->fields - 5, c, best_class = 0;
  float score, best = -HUGE_VALF, value = y7edge__raw(view->data, head->dtype, index + 4 * view->step);
  if (!(value >= least)) return count; /* also if it is NaN */
  score = y7edge__activate(head, y7edge__value(view, index + 4 * view->step));
  if (classes > 1) {
    for (c = 0; c < classes; c++) {
      value = y7edge__value(view, index + (5 + c) * view->step);
      if (value > best) {
        best = value;
        best_class = c;
      }
    }
    score *= y7edge__activate(head, best);
  }
  if (!(score > (float)criteria->conf)) return count;
  if (criteria->wanted && !criteria->wanted[best_class]) return count;
  if (criteria->class_conf && !(score > criteria->class_conf[best_class])) return count;
  found[count].score = score;
  found[count].place = view->first + (uint32_t)(anchor * view->area + cell);
  found[count].class_id = (int32_t)best_class;
  return count + 1;
}

/* Append the candidates of one head. Nearly all cells are background: they are skipped in blocks,
 * with a loop that compilers vectorise. */
static inline size_t y7edge__scan(const y7edge__view *view, const y7edge_criteria *criteria,
                                  y7edge__candidate *found, size_t count) {
  enum { BLOCK = 32 };
  const y7edge_head *head = view->head;
  float least = y7edge__least(head, criteria->conf), values[BLOCK];
  int packed = head->dtype == Y7EDGE_FLOAT32 && !head->channels_last;
  size_t anchor, cell, k, end;
  for (anchor = 0; anchor < (size_t)head->anchors; anchor++) {
    for (cell = 0; cell < view->area; cell = end) {
      end = cell + BLOCK < view->area ? cell + BLOCK : view->area;
      if (packed && end - cell == BLOCK) {
        int any = 0;
        size_t index = y7edge__index(view, anchor, cell) + 4 * view->step;
        memcpy(values, view->data + 4 * index, sizeof values);
        for (k = 0; k < BLOCK; k++) any |= values[k] >= least;
        if (!any) continue;
      }
      for (k = cell; k < end; k++) {
        count = y7edge__examine(view, anchor, k, least, criteria, found, count);
      }
    }
  }
  return count;
}

/* Compute the box of a candidate, in pixels of the input; return whether it is finite. */
static inline int y7edge__box_of(const y7edge__view *view, size_t columns,
                                 const y7edge__candidate *candidate, y7edge_box *box) {
  const y7edge_head *head = view->head;
  size_t offset = candidate->place - view->first, anchor = offset / view->area;
  size_t cell = offset % view->area, index = y7edge__index(view, anchor, cell), axis;
  float low[2], high[2], places[2];
  places[0] = (float)(cell % columns);
  places[1] = (float)(cell / columns);
  for (axis = 0; axis < 2; axis++) {
    float at = 2 * y7edge__activate(head, y7edge__value(view, index + axis * view->step));
    float size = 2 * y7edge__activate(head, y7edge__value(view, index + (2 + axis) * view->step));
    float centre = (at - 0.5f + places[axis]) * (float)head->stride;
    float half = size * size * head->anchor[2 * anchor + axis] / 2;
    low[axis] = centre - half;
    high[axis] = centre + half;
  }
  box->x0 = low[0], box->y0 = low[1], box->x1 = high[0], box->y1 = high[1];
  box->score = candidate->score;
  box->class_id = candidate->class_id;
  return isfinite(low[0]) && isfinite(low[1]) && isfinite(high[0]) && isfinite(high[1]);
}

/* Return the IoU of two boxes; NaN if both are empty. */
static inline float y7edge__iou(const y7edge_box *a, const y7edge_box *b) {
  float width = (a->x1 < b->x1 ? a->x1 : b->x1) - (a->x0 > b->x0 ? a->x0 : b->x0);
  float height = (a->y1 < b->y1 ? a->y1 : b->y1) - (a->y0 > b->y0 ? a->y0 : b->y0);
  float inter, area_a, area_b;
  if (!(width > 0 && height > 0)) return 0;
  inter = width * height;
  area_a = (a->x1 - a->x0) * (a->y1 - a->y0);
  area_b = (b->x1 - b->x0) * (b->y1 - b->y0);
  return inter / (area_a + area_b - inter);
}

/* Return the number of anchors in all cells of one image; 0 if the model is invalid. */
static inline uint32_t y7edge__places(const y7edge_model_info *model) {
  uint64_t total = 0;
  int level, k;
  if (!model || !model->heads || model->levels < 1 || model->levels > Y7EDGE_MAX_LEVELS) return 0;
  if (model->classes < 1 || model->classes > Y7EDGE_MAX_CLASSES || model->batch < 0) return 0;
  if (model->height < 1 || model->height > Y7EDGE_MAX_SIDE) return 0;
  if (model->width < 1 || model->width > Y7EDGE_MAX_SIDE) return 0;
  for (level = 0; level < model->levels; level++) {
    const y7edge_head *head = &model->heads[level];
    if (head->stride < 1 || head->stride > Y7EDGE_MAX_STRIDE || !head->anchor) return 0;
    if (model->height % head->stride || model->width % head->stride) return 0;
    if (head->anchors < 1 || head->anchors > Y7EDGE_MAX_ANCHORS) return 0;
    if ((int)head->dtype < Y7EDGE_FLOAT32 || (int)head->dtype > Y7EDGE_UINT16) return 0;
    if (!y7edge__is_real(head->dtype) && !(head->scale > 0 && head->scale <= FLT_MAX)) return 0;
    for (k = 0; k < 2 * head->anchors; k++) {
      if (!(head->anchor[k] > 0 && head->anchor[k] <= FLT_MAX)) return 0;
    }
    total += (uint64_t)(model->height / head->stride) * (uint64_t)(model->width / head->stride) *
             (uint64_t)head->anchors;
  }
  return total <= UINT32_MAX ? (uint32_t)total : 0;
}

/* Return the number of bytes of one image in a head of a valid model. Below 2^28 cells x 2^22
 * channels x 4 bytes, so that this cannot overflow. */
static inline uint64_t y7edge__bytes(const y7edge_model_info *model, const y7edge_head *head) {
  uint64_t rows = (uint64_t)(model->height / head->stride);
  uint64_t columns = (uint64_t)(model->width / head->stride);
  return rows * columns * (uint64_t)head->anchors * (uint64_t)(5 + model->classes) *
         y7edge__size_of(head->dtype);
}

/* Prepare the views of one image; return 0 or an error. */
static inline int y7edge__views(const y7edge_model_info *model, const y7edge_tensor *heads,
                                int image, y7edge__view *views) {
  uint32_t first = 0;
  int level;
  for (level = 0; level < model->levels; level++) {
    const y7edge_head *head = &model->heads[level];
    y7edge__view *view = &views[level];
    uint64_t bytes = y7edge__bytes(model, head);
    if (!heads[level].data) return Y7EDGE_BAD_ARGUMENT;
    if (heads[level].bytes / bytes <= (uint64_t)image) return Y7EDGE_SMALL_HEAD;
    view->head = head;
    view->data = (const unsigned char *)heads[level].data + (size_t)bytes * (size_t)image;
    view->area = (size_t)(model->height / head->stride) * (size_t)(model->width / head->stride);
    view->fields = (size_t)(5 + model->classes);
    view->step = head->channels_last ? 1 : view->area;
    view->first = first;
    first += (uint32_t)view->area * (uint32_t)head->anchors;
  }
  return 0;
}

/* --- functions ---------------------------------------------------------------------------------- */

/* Return the thresholds that the artifact's Detector has by default. */
static inline y7edge_criteria y7edge_default_criteria(const y7edge_model_info *model) {
  y7edge_criteria criteria;
  criteria.conf = model->conf;
  criteria.iou = model->iou;
  criteria.max_det = model->max_det;
  criteria.agnostic = 0;
  criteria.class_conf = NULL;
  criteria.wanted = NULL;
  return criteria;
}

/* Return the number of bytes that y7edge_decode needs; 0 if the model is invalid. */
static inline size_t y7edge_workspace_size(const y7edge_model_info *model) {
  uint64_t bytes = (uint64_t)y7edge__places(model) * sizeof(y7edge__candidate);
  return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

/* Return the number of bytes of one image in the head of a level; 0 if there is no such head. */
static inline size_t y7edge_head_size(const y7edge_model_info *model, int level) {
  uint64_t bytes = 0;
  if (y7edge__places(model) && level >= 0 && level < model->levels) {
    bytes = y7edge__bytes(model, &model->heads[level]);
  }
  return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

/* Find the boxes of one image, best first, in pixels of the model's input.
 *
 * heads: the outputs of the engine, in the order of model->heads, for the whole batch.
 * image: index of the image in the batch.
 * workspace: memory of at least y7edge_workspace_size bytes, aligned as by malloc. Threads need
 *     workspaces of their own.
 * boxes: room for `capacity` boxes; the result has at most criteria->max_det.
 *
 * Returns the number of boxes, or a negative error. */
static inline int y7edge_decode(const y7edge_model_info *model, const y7edge_tensor *heads,
                                int image, const y7edge_criteria *criteria, void *workspace,
                                size_t workspace_bytes, y7edge_box *boxes, int capacity) {
  y7edge__view views[Y7EDGE_MAX_LEVELS];
  y7edge__candidate *heap = (y7edge__candidate *)workspace;
  size_t count = 0, root, needed = y7edge_workspace_size(model);
  int level, error, examined, kept = 0, k;
  if (!needed) return Y7EDGE_BAD_MODEL;
  if (!heads || !criteria || !workspace || !boxes || capacity < 1) return Y7EDGE_BAD_ARGUMENT;
  if (image < 0 || (model->batch && image >= model->batch)) return Y7EDGE_BAD_ARGUMENT;
  if (!(criteria->conf >= 0 && criteria->conf <= 1)) return Y7EDGE_BAD_ARGUMENT;
  if (!(criteria->iou >= 0 && criteria->iou <= 1)) return Y7EDGE_BAD_ARGUMENT;
  if (criteria->max_det < 1) return Y7EDGE_BAD_ARGUMENT;
  if (workspace_bytes < needed) return Y7EDGE_SMALL_WORKSPACE;
  if ((error = y7edge__views(model, heads, image, views)) != 0) return error;
  if (criteria->max_det < capacity) capacity = criteria->max_det;
  for (level = 0; level < model->levels; level++) {
    count = y7edge__scan(&views[level], criteria, heap, count);
  }
  /* A heap returns the best candidates in order, without sorting the others. */
  for (root = count / 2; root-- > 0;) y7edge__sink(heap, count, root);
  for (examined = 0; count && kept < capacity && examined < Y7EDGE_MAX_CANDIDATES; examined++) {
    y7edge__candidate best = heap[0];
    y7edge_box *box = &boxes[kept];
    heap[0] = heap[--count];
    if (count) y7edge__sink(heap, count, 0);
    for (level = model->levels - 1; best.place < views[level].first;) level--;
    if (!y7edge__box_of(&views[level], (size_t)(model->width / model->heads[level].stride), &best,
                        box)) {
      continue;
    }
    for (k = 0; k < kept; k++) {
      if (!criteria->agnostic && boxes[k].class_id != box->class_id) continue;
      if (y7edge__iou(&boxes[k], box) > (float)criteria->iou) break;
    }
    kept += k == kept;
  }
  return kept;
}

/* Return how an image is fitted into the input: resized with one factor, and centred on grey. All
 * fields are 0 if a side is not positive. */
static inline y7edge_letterbox y7edge_fit(const y7edge_model_info *model, int image_width,
                                          int image_height) {
  y7edge_letterbox fit = {0, 0, 0, 0, 0, 0};
  double across, down, factor;
  if (!model || image_width < 1 || image_height < 1 || model->width < 1 || model->height < 1) {
    return fit;
  }
  across = (double)model->width / image_width;
  down = (double)model->height / image_height;
  factor = across < down ? across : down;
  fit.image_width = image_width;
  fit.image_height = image_height;
  /* rint rounds half to even, like Python, unless the program has changed the rounding mode. */
  fit.width = (int)rint(image_width * factor);
  fit.height = (int)rint(image_height * factor);
  if (fit.width < 1) fit.width = 1;
  if (fit.height < 1) fit.height = 1;
  fit.left = (int)rint((model->width - fit.width) / 2.0 - 0.1);
  fit.top = (int)rint((model->height - fit.height) / 2.0 - 0.1);
  return fit;
}

/* Map boxes from pixels of the input to pixels of the image, and clip them to it. Boxes that lie in
 * the border of the letterbox are removed. Returns the number of boxes left. */
static inline int y7edge_to_image(const y7edge_letterbox *fit, y7edge_box *boxes, int count) {
  float sides[2], ratio[2], shift[2], corners[4];
  int index, k, left = 0;
  if (!fit || !boxes || fit->image_width < 1 || fit->image_height < 1) return 0;
  sides[0] = (float)fit->image_width;
  sides[1] = (float)fit->image_height;
  ratio[0] = (float)((double)fit->width / fit->image_width);
  ratio[1] = (float)((double)fit->height / fit->image_height);
  shift[0] = (float)fit->left;
  shift[1] = (float)fit->top;
  for (index = 0; index < count; index++) {
    y7edge_box box = boxes[index];
    corners[0] = box.x0, corners[1] = box.y0, corners[2] = box.x1, corners[3] = box.y1;
    for (k = 0; k < 4; k++) {
      float moved = (corners[k] - shift[k % 2]) / ratio[k % 2];
      moved = moved > 0 ? moved : 0;
      corners[k] = moved < sides[k % 2] ? moved : sides[k % 2];
    }
    if (!(corners[2] > corners[0] && corners[3] > corners[1])) continue;
    box.x0 = corners[0], box.y0 = corners[1], box.x1 = corners[2], box.y1 = corners[3];
    boxes[left++] = box;
  }
  return left;
}

#ifdef __cplusplus
}
#endif

#endif
