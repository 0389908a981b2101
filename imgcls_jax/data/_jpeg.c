/* Decodes a part of a JPEG at full, half, quarter or eighth size with libjpeg-turbo; jpeg.py is its documentation.
 *
 * libjpeg reports an error by a function that must not return: `fail` jumps to the `setjmp` of the function that
 * called libjpeg, which returns -1 with the reason in `message`. Every such function therefore begins with `setjmp`,
 * keeps what it needs afterwards in the Decoder, and is called without an open one above it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "libjpeg-turbo is needed: other versions of libjpeg cannot decode a part of an image"
#endif

/* Against decompression bombs: a progressive image of this size takes 0.8 GB, and time in proportion to its scans. */
#define MAX_PIXELS (1L << 27)
#define MAX_SCANS 100

/* Chroma is upsampled by a filter that looks one sample (two pixels) to each side, and at the edge of what is decoded
 * repeats the last one: so the edge of what is decoded must lie outside the box. */
#define PADDING 2

typedef struct {
  long top, left, height, width;
} Box;

typedef struct {
  struct jpeg_error_mgr errors; /* first, so that a pointer to it is a pointer to the Decoder */
  struct jpeg_progress_mgr progress;
  struct jpeg_decompress_struct info;
  jmp_buf on_error;
  char message[JMSG_LENGTH_MAX];
} Decoder;

static void fail(j_common_ptr info) {
  Decoder *decoder = (Decoder *)info->err;
  (*info->err->format_message)(info, decoder->message);
  longjmp(decoder->on_error, 1);
}

/* Negative levels are warnings: damaged data, for which libjpeg makes pixels up. */
static void on_message(j_common_ptr info, int level) {
  if (level < 0) fail(info);
}

static void on_output(j_common_ptr info) { (void)info; }

static void fail_with(Decoder *decoder, const char *message) {
  snprintf(decoder->message, sizeof decoder->message, "%s", message);
  longjmp(decoder->on_error, 1);
}

static void on_progress(j_common_ptr info) {
  if (((j_decompress_ptr)info)->input_scan_number > MAX_SCANS) fail_with((Decoder *)info->err, "it has too many scans");
}

static long ceil_div(long a, long b) { return (a + b - 1) / b; }

/* Reads up to the first scan; `decoder` is all zeros before. */
static int read_header(Decoder *decoder, const unsigned char *data, size_t length) {
  j_decompress_ptr info = &decoder->info;
  info->err = jpeg_std_error(&decoder->errors);
  decoder->errors.error_exit = fail;
  decoder->errors.emit_message = on_message;
  decoder->errors.output_message = on_output;
  if (setjmp(decoder->on_error)) return -1;
  jpeg_create_decompress(info);
  decoder->progress.progress_monitor = on_progress;
  info->progress = &decoder->progress;
  jpeg_mem_src(info, data, (unsigned long)length);
  jpeg_read_header(info, TRUE);
  return 0;
}

/* The box in the image reduced by `scale`, rounded outward: every pixel that a pixel of the box is part of. */
static Box reduce(const Box *box, long scale) {
  Box out;
  out.top = box->top / scale;
  out.left = box->left / scale;
  out.height = ceil_div(box->top + box->height, scale) - out.top;
  out.width = ceil_div(box->left + box->width, scale) - out.left;
  return out;
}

/* The largest reduction for which the box is still at least so large; 1 if no least size is given. */
static long choose_scale(const Box *box, long least_height, long least_width) {
  long scale;
  if (least_height < 1 || least_width < 1) return 1;
  for (scale = 8; scale > 1; scale /= 2) {
    Box smaller = reduce(box, scale);
    if (smaller.height >= least_height && smaller.width >= least_width) break;
  }
  return scale;
}

/* Fails if the image, or the box in it, cannot be decoded here. */
static void check(Decoder *decoder, const Box *box) {
  j_decompress_ptr info = &decoder->info;
  const long height = (long)info->image_height, width = (long)info->image_width;
  if (info->data_precision != 8) fail_with(decoder, "it does not have 8 bits a channel");
  if (info->jpeg_color_space != JCS_GRAYSCALE && info->jpeg_color_space != JCS_YCbCr &&
      info->jpeg_color_space != JCS_RGB)
    fail_with(decoder, "it is neither grey nor YCbCr nor RGB");
  if ((long long)height * width > MAX_PIXELS) fail_with(decoder, "it has too many pixels");
  if (box->top < 0 || box->left < 0 || box->height < 1 || box->width < 1 || box->top >= height || box->left >= width ||
      box->height > height - box->top || box->width > width - box->left)
    fail_with(decoder, "the box is not inside the image");
}

static void set_options(Decoder *decoder, int channels, long scale) {
  j_decompress_ptr info = &decoder->info;
  info->scale_num = 1;
  info->scale_denom = (unsigned int)scale;
  info->out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  info->dct_method = JDCT_ISLOW;
  info->do_fancy_upsampling = TRUE;
  jpeg_calc_output_dimensions(info);
  if ((long)info->output_height != ceil_div((long)info->image_height, scale) ||
      (long)info->output_width != ceil_div((long)info->image_width, scale) || info->output_components != channels)
    fail_with(decoder, "this libjpeg cannot scale or convert it");
}

/* Chooses the reduction and makes `box` the box in the reduced image. */
static int plan(Decoder *decoder, int channels, long least_height, long least_width, Box *box) {
  long scale;
  if (setjmp(decoder->on_error)) return -1;
  check(decoder, box);
  scale = choose_scale(box, least_height, least_width);
  set_options(decoder, channels, scale);
  *box = reduce(box, scale);
  return 0;
}

/* A progressive image that lacks scans is smoothed across blocks, which a part of an image cannot do in the same way. */
static int is_incomplete(j_decompress_ptr info) {
  int component, i;
  if (!info->progressive_mode || info->coef_bits == NULL) return 0;
  for (component = 0; component < info->num_components; component++)
    for (i = 0; i < DCTSIZE2; i++)
      if (info->coef_bits[component][i] != 0) return 1;
  return 0;
}

/* Writes the box [height, width, channels] of the reduced image to `out`. Runs without the GIL. */
static int read_box(Decoder *decoder, const Box *box, int channels, unsigned char *out) {
  j_decompress_ptr info = &decoder->info;
  JDIMENSION top, left, right, width, first, end, count, i;
  JSAMPARRAY rows;
  size_t row_bytes = (size_t)box->width * (size_t)channels;
  if (setjmp(decoder->on_error)) return -1;
  jpeg_start_decompress(info);
  if (is_incomplete(info)) fail_with(decoder, "it is progressive and lacks scans");

  first = (JDIMENSION)box->left;
  end = (JDIMENSION)(box->top + box->height);
  left = first > PADDING ? first - PADDING : 0;
  right = (JDIMENSION)(box->left + box->width) + PADDING;
  if (right > info->output_width) right = info->output_width;
  width = right - left;
  if (width < info->output_width) jpeg_crop_scanline(info, &left, &width); /* moves left to the edge of a block */
  if (left > first || (long)left + (long)width < box->left + box->width)
    fail_with(decoder, "this libjpeg cut it in another place");
  top = box->top > PADDING ? (JDIMENSION)box->top - PADDING : 0;
  if (top > 0 && jpeg_skip_scanlines(info, top) != top) fail_with(decoder, "this libjpeg cannot skip its rows");

  rows = (*info->mem->alloc_sarray)((j_common_ptr)info, JPOOL_IMAGE, width * (JDIMENSION)channels,
                                    (JDIMENSION)info->rec_outbuf_height);
  while (info->output_scanline < end) {
    JDIMENSION y = info->output_scanline;
    count = jpeg_read_scanlines(info, rows, (JDIMENSION)info->rec_outbuf_height);
    if (count == 0) fail_with(decoder, "it ends too early");
    for (i = 0; i < count; i++, y++)
      if (y >= (JDIMENSION)box->top && y < end)
        memcpy(out + (size_t)(y - (JDIMENSION)box->top) * row_bytes, rows[i] + (size_t)(first - left) * (size_t)channels,
               row_bytes);
  }
  return 0;
}

static PyObject *raise_and_free(Decoder *decoder, Py_buffer *data) {
  PyErr_SetString(PyExc_ValueError, decoder->message);
  jpeg_destroy_decompress(&decoder->info);
  PyBuffer_Release(data);
  return NULL;
}

static PyObject *py_size(PyObject *self, PyObject *args) {
  Py_buffer data;
  Decoder decoder;
  PyObject *result;
  (void)self;
  memset(&decoder, 0, sizeof decoder);
  if (!PyArg_ParseTuple(args, "y*:size", &data)) return NULL;
  if (read_header(&decoder, data.buf, (size_t)data.len)) return raise_and_free(&decoder, &data);
  result = Py_BuildValue("(kki)", (unsigned long)decoder.info.image_height, (unsigned long)decoder.info.image_width,
                         decoder.info.num_components);
  jpeg_destroy_decompress(&decoder.info);
  PyBuffer_Release(&data);
  return result;
}

static PyObject *py_decode_crop(PyObject *self, PyObject *args) {
  Py_buffer data;
  Decoder decoder;
  Box box;
  PyObject *pixels;
  unsigned char *out;
  long least_height, least_width;
  int channels, status;
  (void)self;
  memset(&decoder, 0, sizeof decoder);
  if (!PyArg_ParseTuple(args, "y*i(llll)(ll):decode_crop", &data, &channels, &box.top, &box.left, &box.height,
                        &box.width, &least_height, &least_width))
    return NULL;
  if (channels != 1 && channels != 3) {
    PyBuffer_Release(&data);
    PyErr_SetString(PyExc_ValueError, "channels must be 1 or 3");
    return NULL;
  }
  if (read_header(&decoder, data.buf, (size_t)data.len) ||
      plan(&decoder, channels, least_height, least_width, &box))
    return raise_and_free(&decoder, &data);
  pixels = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)box.height * (Py_ssize_t)box.width * channels);
  if (pixels == NULL) {
    jpeg_destroy_decompress(&decoder.info);
    PyBuffer_Release(&data);
    return NULL;
  }
  out = (unsigned char *)PyByteArray_AsString(pixels);
  Py_BEGIN_ALLOW_THREADS
  status = read_box(&decoder, &box, channels, out);
  Py_END_ALLOW_THREADS
  if (status) {
    Py_DECREF(pixels);
    return raise_and_free(&decoder, &data);
  }
  jpeg_destroy_decompress(&decoder.info);
  PyBuffer_Release(&data);
  return Py_BuildValue("(Nll)", pixels, box.height, box.width);
}

static PyMethodDef methods[] = {
    {"size", py_size, METH_VARARGS, "size(data) -> (height, width, components)"},
    {"decode_crop", py_decode_crop, METH_VARARGS,
     "decode_crop(data, channels, (top, left, height, width), (least_height, least_width)) -> (pixels, height, width)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_jpeg", "Partial decoding of JPEGs; see jpeg.py.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModuleDef_Init(&module); }
