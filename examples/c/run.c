/* Run a signature of an exported SavedModel by TensorFlow's C API, without Python.
 *
 *     run FOLDER SIGNATURE [TIMES] < numbers
 *
 * For signatures of one input, float32[rows, ...] or int64[rows]: log_density, score, decode and
 * sample_rows.  The numbers are those of all rows, apart by white space; the output's are printed
 * one a line.  With TIMES it runs that often, and prints the seconds of each time on standard
 * error.  Exit code: 0, or 1 after a message.
 *
 * With TensorFlow's own wheel, whose folder is TF:
 *
 *     gcc run.c -o run -I$TF/include -L$TF -l:libtensorflow_cc.so.2 \
 *         -l:libtensorflow_framework.so.2 -Wl,-rpath,$TF
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tensorflow/c/c_api.h"

typedef struct {
  const uint8_t *data, *end;
} Bytes;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "error: %s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status *status, const char *what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

static uint64_t varint(Bytes *in) {
  uint64_t value = 0;
  for (int shift = 0; in->data < in->end && shift < 64; shift += 7) {
    value |= (uint64_t)(*in->data & 127) << shift;
    if (*in->data++ < 128) break;
  }
  return value;
}

/* The next field `number` of a protocol buffer that is a message or string; 0 after the last. */
static int next(Bytes *in, uint64_t number, Bytes *out) {
  while (in->data < in->end) {
    uint64_t tag = varint(in), size = 0;
    switch (tag & 7) {
      case 0: varint(in); continue;
      case 1: size = 8; break;
      case 2: size = varint(in); break;
      case 5: size = 4; break;
      default: return 0;
    }
    if (size > (uint64_t)(in->end - in->data)) return 0;
    *out = (Bytes){in->data, in->data + size};
    in->data += size;
    if ((tag & 7) == 2 && tag >> 3 == number) return 1;
  }
  return 0;
}

/* The value of a key, or of any with NULL, in the map that is field `number` of a message. */
static Bytes lookup(Bytes message, uint64_t number, const char *key) {
  Bytes entry, name, value = {0};
  while (next(&message, number, &entry)) {
    Bytes rest = entry;
    if (!next(&rest, 1, &name) || !next(&entry, 2, &value)) continue;
    size_t size = name.end - name.data;
    if (!key || (size == strlen(key) && !memcmp(name.data, key, size))) return value;
  }
  fail(key ? key : "signature", "not in this SavedModel");
  return value;
}

/* The tensor of a TensorInfo, whose name is "operation:index". */
static TF_Output tensor(TF_Graph *graph, Bytes info) {
  Bytes text;
  char name[256] = "";
  if (!next(&info, 1, &text) || text.end - text.data >= (ptrdiff_t)sizeof name)
    fail("tensor", "has no name");
  memcpy(name, text.data, text.end - text.data);
  char *colon = strchr(name, ':');
  if (!colon) fail(name, "is no tensor");
  *colon = 0;
  TF_Output out = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (!out.oper) fail(name, "is not in the graph");
  return out;
}

/* The rows of standard input, for an input of this type and shape. */
static TF_Tensor *read_rows(TF_DataType type, int64_t *shape, int rank) {
  size_t count = 0, room = 1024, width = 1;
  double *numbers = malloc(room * sizeof *numbers);
  for (double number; scanf("%lf", &number) == 1; numbers[count++] = number)
    if (count == room) numbers = realloc(numbers, (room *= 2) * sizeof *numbers);
  for (int i = 1; i < rank; i++) width *= shape[i];
  if (rank < 1 || count % width || (type != TF_FLOAT && type != TF_INT64))
    fail("input", "these numbers are no rows of this signature");
  shape[0] = count / width;
  TF_Tensor *rows = TF_AllocateTensor(type, shape, rank, count * TF_DataTypeSize(type));
  for (size_t i = 0; i < count; i++)
    if (type == TF_FLOAT)
      ((float *)TF_TensorData(rows))[i] = numbers[i];
    else
      ((int64_t *)TF_TensorData(rows))[i] = numbers[i];
  free(numbers);
  return rows;
}

int main(int argc, char **argv) {
  int times = argc == 4 ? atoi(argv[3]) : 1;
  if (argc < 3 || argc > 4 || times < 1)
    fail("usage", "run FOLDER SIGNATURE [TIMES] < numbers");
  const char *tags[] = {"serve"};
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_Buffer *meta = TF_NewBuffer();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, meta, status);
  check(status, argv[1]);

  /* MetaGraphDef.signature_def = 5; SignatureDef.inputs = 1, outputs = 2 */
  Bytes whole = {meta->data, (const uint8_t *)meta->data + meta->length};
  Bytes signature = lookup(whole, 5, argv[2]);
  TF_Output input = tensor(graph, lookup(signature, 1, NULL));
  TF_Output output = tensor(graph, lookup(signature, 2, NULL));

  int64_t shape[8];
  int rank = TF_GraphGetTensorNumDims(graph, input, status);
  if (rank > 8) fail("input", "has more than 8 dimensions");
  TF_GraphGetTensorShape(graph, input, shape, rank, status);
  check(status, "input");
  TF_Tensor *rows = read_rows(TF_OperationOutputType(input), shape, rank), *result = NULL;
  for (int i = 0; i < times; i++) {
    struct timespec start, end;
    if (result) TF_DeleteTensor(result);
    clock_gettime(CLOCK_MONOTONIC, &start);
    TF_SessionRun(session, NULL, &input, &rows, 1, &output, &result, 1, NULL, 0, NULL, status);
    clock_gettime(CLOCK_MONOTONIC, &end);
    check(status, argv[2]);
    if (argc == 4)
      fprintf(stderr, "%.9f\n",
              (double)(end.tv_sec - start.tv_sec) + 1e-9 * (end.tv_nsec - start.tv_nsec));
  }
  for (int64_t i = 0; i < TF_TensorElementCount(result); i++)
    printf("%.9g\n", ((float *)TF_TensorData(result))[i]);

  TF_DeleteTensor(rows);
  TF_DeleteTensor(result);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteBuffer(meta);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
